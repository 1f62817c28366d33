//! From a model to its LoRA model, and what carries over.

mod calibrated;
mod settings;
