//! Merging into checkpoints, against what PEFT's `merge_and_unload` gives.

mod fixtures;
mod refused;
mod several;
mod support;
mod tying;
