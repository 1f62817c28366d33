//! The special tokens that a tokenizer's files name.

use serde_json::{Map, Value};

/// Names of special tokens, in transformers' order.
pub(super) const NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Keys of special tokens without a name.
const MORE: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// The special tokens with a name: those of the first of the files that has the name. One with null has
/// none.
pub(super) fn named(files: &[&Map<String, Value>]) -> Vec<(&'static str, String)> {
    let find = |name: &'static str| {
        let value = files.iter().find_map(|file| file.get(name))?;
        Some((name, content(value)?.to_string()))
    };
    NAMES.into_iter().filter_map(find).collect()
}

/// The special tokens without a name.
pub(super) fn unnamed(file: &Map<String, Value>) -> Vec<String> {
    let mut found = Vec::new();
    for value in MORE.iter().filter_map(|key| file.get(*key)) {
        let tokens: Vec<&Value> = match value {
            Value::Array(tokens) => tokens.iter().collect(),
            Value::Object(tokens) => tokens.values().collect(),
            _ => Vec::new(),
        };
        found.extend(tokens.into_iter().filter_map(content).map(String::from));
    }
    found
}

/// The text of a token, which is a text or an object with a `content`.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}
