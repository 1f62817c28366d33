//! Tokenizers, chat templates and the generation of text, against transformers.

mod chat;
mod generate;
mod learn;
mod tokenizer;

use lora::text::Tokenizer;
use serde::de::DeserializeOwned;
use std::path::PathBuf;

/// A file or folder that `tests/fixtures/text/make.py` writes.
fn fixture(name: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/text");
    PathBuf::from(folder).join(name)
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::from_directory(fixture(name)).unwrap()
}
