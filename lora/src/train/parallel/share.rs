//! Which examples of a batch a rank computes.

/// A rank's part of each batch: every so manieth example. Batches are often sorted by length, and so the
/// ranks have about as much to do.
///
/// ```
/// # let batch = [4, 9, 2, 7, 5];
/// use lora::train::Share;
///
/// let shares = [0, 1].map(|rank| Share::new(rank, 2).of(&batch));
/// assert_eq!(shares, [vec![4, 2, 5], vec![9, 7]]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    rank: usize,
    ranks: usize,
}

impl Share {
    /// The share of a rank, which counts from 0, of so many. No ranks are one.
    pub fn new(rank: usize, ranks: usize) -> Self {
        Self {
            rank,
            ranks: ranks.max(1),
        }
    }

    /// The number of the rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of all ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The rank's examples of a batch. There is none if the batch has fewer examples than there are ranks
    /// before it; rank 0 has one of every batch.
    pub fn of<T: Clone>(&self, batch: &[T]) -> Vec<T> {
        let own = batch.iter().skip(self.rank).step_by(self.ranks);
        own.cloned().collect()
    }
}
