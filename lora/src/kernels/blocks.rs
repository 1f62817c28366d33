//! How rows are shared out among threads.

use super::matrix::Threads;

/// Bytes of a block's widest rows: about the size of a core's own cache.
const CACHE: usize = 3 << 19;

/// Bytes of weights that stay in the cache that all cores share, from one block to the next.
const SHARED_CACHE: usize = 8 << 20;

/// From so many rows on, a thread computes longer with weights than it reads them.
const ROWS_OF_A_THREAD: usize = 128;

/// Rows in a block, and whether the work inside a block may use all threads.
///
/// `bytes` is the size of the widest row that a block holds, `weights` the size of the matrices
/// that every block reads. Few rows with large weights, and any rows with weights that no cache
/// holds, are one block on all threads: reading the weights for each block would cost more time than
/// staying in the cache saves.
pub(crate) fn blocks(rows: usize, bytes: usize, weights: usize) -> (usize, Threads) {
    let threads = rayon::current_num_threads();
    let whole = rows * bytes;
    if threads == 1 {
        return ((CACHE / bytes.max(1)).clamp(1, rows.max(1)), Threads::One);
    }
    let few_rows = whole <= 6 << 20 && weights > 2 << 20;
    if whole <= 1 << 16 || few_rows || weights > SHARED_CACHE {
        return (rows.max(1), Threads::All);
    }
    // A multiple of the number of threads, so that no thread waits for a last block.
    let blocks = whole.div_ceil(CACHE).next_multiple_of(threads);
    (rows.div_ceil(blocks).max(1), Threads::One)
}

/// One block for each thread, for many rows with weights that no cache holds: each thread reads the
/// weights once, and everything between the products runs on all threads too.
pub(crate) fn each_thread(rows: usize, weights: usize) -> Option<(usize, Threads)> {
    let threads = rayon::current_num_threads();
    let many = rows >= ROWS_OF_A_THREAD * threads && weights > SHARED_CACHE;
    (threads > 1 && many).then(|| (rows.div_ceil(threads), Threads::One))
}

/// Takes the first items off a slice.
pub(crate) fn take<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    let (head, tail) = std::mem::take(rest).split_at_mut(count);
    *rest = tail;
    head
}
