//! Merging into checkpoints, against what PEFT's `merge_and_unload` gives.

#[path = "merge/fixtures.rs"]
mod fixtures;
#[path = "merge/refused.rs"]
mod refused;
#[path = "merge/support.rs"]
mod support;
