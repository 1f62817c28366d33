//! Freed memory is used again, without faulting its pages in. A process of its own: the setting is
//! for all of it.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use lora_examples::memory::keep_freed;
use std::fs;
use std::hint::black_box;

/// Bytes of a buffer: more than glibc ever takes from its heap by itself.
const SIZE: usize = 64 << 20;

/// Pages that this process has been given so far, the tenth number of its stat behind its name.
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

#[test]
fn the_second_buffer_takes_the_pages_of_the_first() {
    keep_freed();
    // Pages are of 4 kB or more; with huge ones there are few to begin with.
    let (first, second) = (faults_of_a_buffer(), faults_of_a_buffer());
    assert!(
        first > 0 && second <= first / 10,
        "{first} faults, then {second}"
    );
}
