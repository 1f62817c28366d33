//! Adapters in PEFT's format, against files and numbers that PEFT made.

mod config;
mod elsewhere;
mod experts;
mod export;
mod fixtures;
mod import;
mod malformed;
pub(crate) mod models;
mod saving;
pub(crate) mod support;
