//! Random cases that are the same in every run, unless others are asked for.

use proptest::test_runner::{Config, RngSeed};
use std::env::var;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// The seed of all properties of this process: `LORA_TEST_SEED`, a number or `random`.
static SEED: LazyLock<u64> = LazyLock::new(|| match var("LORA_TEST_SEED").as_deref() {
    Err(_) => 0,
    // The only random numbers in the standard library.
    Ok("random") => RandomState::new().hash_one(()),
    Ok(number) => number
        .parse()
        .unwrap_or_else(|_| panic!("LORA_TEST_SEED is `{number}`: give a number, or `random`")),
});

/// The settings of a property: how many cases are drawn, without `PROPTEST_CASES`, and from which
/// seed.
pub fn cases(count: u32) -> Config {
    // Only shown with a failure, where it is needed to draw the same cases again.
    println!("the cases are those of LORA_TEST_SEED={}", *SEED);
    Config {
        cases: count,
        rng_seed: RngSeed::Fixed(*SEED),
        failure_persistence: None,
        ..Config::default()
    }
}
