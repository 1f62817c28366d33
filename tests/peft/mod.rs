//! Adapters in PEFT's format, against files and numbers that PEFT made.

mod config;
mod export;
mod fixtures;
mod malformed;
pub(crate) mod models;
mod saving;
pub(crate) mod support;
