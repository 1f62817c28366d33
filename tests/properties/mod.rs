//! Invariants over random layers, models, settings and inputs.
//!
//! The cases are the same in every run; `LORA_TEST_SEED` asks for others, `PROPTEST_CASES` for more.

mod layers;
mod models;
mod net;
mod settings;
