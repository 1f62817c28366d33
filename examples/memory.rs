//! How the programs use memory.

/// Keeps memory that is freed, for the next step, in place of giving it back to the system.
///
/// A training step allocates and frees the same large tensors as the one before. glibc maps each
/// buffer beyond 32 MB anew and returns what is free at the end of its heap, so that every step
/// faults in its memory page by page again: a fifth of its time, see docs/performance.md. Call this
/// first in `main`, and train on the main thread: glibc gives other threads heaps of 64 MB at most.
/// Elsewhere than with glibc it does nothing.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets two numbers of the allocator, under its lock.
    unsafe {
        // Take all from the heap, and never cut it (-1).
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}
