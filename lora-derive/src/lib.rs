//! Macros of the `lora` crate.
