//! Freed memory is used again on any thread, without faulting its pages in, and goes back on request.
//! Without the test harness, which would run other threads beside.

use lora::memory;
use std::fs;
use std::hint::black_box;
use std::thread;

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
    let kept = memory::keep();
    let known = cfg!(any(
        feature = "mimalloc",
        all(target_os = "linux", target_env = "gnu")
    ));
    assert_eq!(kept, known);
    if !cfg!(target_os = "linux") || !kept {
        return;
    }
    // Pages are of 4 kB or more; with huge ones there are few to begin with.
    let (first, second) = (faults_of_a_buffer(), faults_of_a_buffer());
    let (on_a_thread, again) = thread::spawn(|| (faults_of_a_buffer(), faults_of_a_buffer()))
        .join()
        .unwrap();
    let all = [first, second, on_a_thread, again];
    assert!(first > 0 && second <= first / 10, "{all:?}");
    assert!(again <= first / 10, "{all:?}");
    // glibc's threads use what the main one has freed. mimalloc's have memory of their own.
    if cfg!(not(feature = "mimalloc")) {
        assert!(on_a_thread <= first / 10, "{all:?}");
    }
    memory::give_back();
    let after = faults_of_a_buffer();
    assert!(
        after > first / 2,
        "{after} faults after giving back, {all:?}"
    );
    let kept = faults_of_a_buffer();
    assert!(kept <= first / 10, "{kept} faults once more, {all:?}");
}
