//! Adapters in PEFT's format, against files and numbers that PEFT made.

#[path = "peft/config.rs"]
mod config;
#[path = "peft/export.rs"]
mod export;
#[path = "peft/fixtures.rs"]
mod fixtures;
#[path = "peft/malformed.rs"]
mod malformed;
#[path = "peft/models.rs"]
mod models;
#[path = "peft/saving.rs"]
mod saving;
#[path = "peft/support.rs"]
mod support;
