//! How much memory a pass takes: every allocation of the process is counted, and one test makes them
//! all.

use candle_core::{DType, Var};
use lora::ops;
use lora_tests::fixed;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The system's allocator, which notes how many bytes are in use and how many were at most.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: memory comes from the system's allocator and goes back to it as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(in_use, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }
}

/// 16384·16384 scores would be 1 GiB.
#[test]
fn attention_is_linear_in_the_length() {
    let length = 1 << 14;
    let x = Var::from_tensor(&fixed((1, 1, length, 1), DType::F32, 1)).unwrap();
    let before = IN_USE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let y = ops::sdpa(&x, &x, &x, None, true, 1.0, 1.0).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get(&x).unwrap().dims(), x.dims());
    let more = PEAK.load(Relaxed) - before;
    // The output and the gradients alone are that much: nothing is left out of the count.
    assert!(more >= 4 * length, "{more} bytes");
    assert!(more < 128 << 20, "{more} bytes");
}
