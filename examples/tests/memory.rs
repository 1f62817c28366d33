//! Freed memory is used again, without faulting its pages in. Without the test harness, which would
//! run it on another thread than the main one.

use lora_examples::memory::keep_freed;
use std::fs;
use std::hint::black_box;

/// Bytes of a buffer: more than glibc ever takes from its heap by itself.
const SIZE: usize = 64 << 20;

/// Pages that this process has been given so far: number 10 of its stat, the eighth behind its name.
fn faults() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, numbers) = stat.rsplit_once(") ").unwrap();
    numbers.split(' ').nth(7).unwrap().parse().unwrap()
}

/// The faults of filling and freeing a buffer.
fn faults_of_a_buffer() -> u64 {
    let before = faults();
    drop(black_box(vec![1u8; SIZE]));
    faults() - before
}

fn main() {
    keep_freed();
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return;
    }
    // Pages are of 4 kB or more; with huge ones there are few to begin with.
    let (first, second) = (faults_of_a_buffer(), faults_of_a_buffer());
    assert!(
        first > 0 && second <= first / 10,
        "{first} faults, then {second}"
    );
}
