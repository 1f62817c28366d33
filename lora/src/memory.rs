//! The memory of a training step, kept for the next one.
//!
//! A step allocates and frees the same large tensors as the step before. An allocator that returns them
//! to the system in between has every page mapped and cleared anew, a fifth of the step's time.
//! candle's tensors own plain memory, so that no pool of this crate could hold them: what helps is to
//! tell the program's allocator. [`keep`] does, in one call.
//!
//! | allocator | what [`keep`] does |
//! |---|---|
//! | glibc's, which a Rust program on Linux has | all threads share one heap, and nothing of it goes back |
//! | mimalloc, by this crate's feature `mimalloc`, on any system | what is free goes back after a day |
//! | another: musl's, macOS's, Windows', or one of the program's own | nothing: take the feature `mimalloc` |
//!
//! [`give_back`] returns what is free at the moment, before a long pause or another phase of the
//! program.

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps memory that is freed, on any thread, for the next use. Call this first in `main`, before
/// other threads run.
///
/// The process then stays as large as it has ever been, until [`give_back`]. Returns whether the
/// allocator keeps memory now; the module's table says which do.
///
/// ```
/// lora::memory::keep();
/// ```
pub fn keep() -> bool {
    allocator::keep()
}

/// Returns free memory to the system: what the allocator can of it. Later allocations are kept again.
pub fn give_back() {
    allocator::give_back();
}

#[cfg(feature = "mimalloc")]
mod allocator {
    use libmimalloc_sys as mimalloc;

    /// mimalloc's `purge_delay`, the milliseconds after which free memory goes back. The bindings do
    /// not name this option, but the next one of mimalloc's list.
    const PURGE_DELAY: mimalloc::mi_option_t = mimalloc::mi_option_use_numa_nodes - 1;

    /// In milliseconds. Without any delay mimalloc forgets what is free, and could not give it back.
    const DAY: std::ffi::c_long = 24 * 60 * 60 * 1000;

    pub(super) fn keep() -> bool {
        // SAFETY: sets a number of the allocator, which may be done at any time.
        unsafe { mimalloc::mi_option_set(PURGE_DELAY, DAY) };
        true
    }

    pub(super) fn give_back() {
        // SAFETY: frees what no one holds; any thread may ask for it.
        unsafe { mimalloc::mi_collect(true) };
    }
}

#[cfg(all(not(feature = "mimalloc"), target_os = "linux", target_env = "gnu"))]
mod allocator {
    pub(super) fn keep() -> bool {
        let settings = [
            // Buffers of more than 32 MB come from the heap, too.
            (libc::M_MMAP_MAX, 0),
            // The heap's end is never cut off.
            (libc::M_TRIM_THRESHOLD, -1),
            // Other threads use the same heap: those of their own are of 64 MB at most.
            (libc::M_ARENA_MAX, 1),
        ];
        let set = settings.map(|(name, value)| {
            // SAFETY: sets a number of the allocator, under its lock.
            unsafe { libc::mallopt(name, value) == 1 }
        });
        set == [true; 3]
    }

    pub(super) fn give_back() {
        // SAFETY: returns whole free pages, under the allocator's lock.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(not(any(feature = "mimalloc", all(target_os = "linux", target_env = "gnu"))))]
mod allocator {
    pub(super) fn keep() -> bool {
        false
    }

    pub(super) fn give_back() {}
}
