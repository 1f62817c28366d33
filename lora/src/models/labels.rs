//! The names of classes, as a `config.json` has them.

use super::keys::Keys;
use serde_json::{Map, Value};

/// More than any model has. A damaged file must not make us ask for all memory.
const MOST: usize = 1 << 20;

/// The names of the classes, in order.
pub(super) fn read(keys: &Keys<'_>) -> Vec<String> {
    const KEY: &str = "id2label";
    let Some(names) = keys.find::<Map<String, Value>>(KEY) else {
        return numbered(keys.get("num_labels", 2usize).min(MOST));
    };
    let name = |index: usize| {
        let name = names.get(&index.to_string())?;
        Some(name.as_str().map_or_else(|| name.to_string(), Into::into))
    };
    let labels: Option<Vec<String>> = (0..names.len()).map(name).collect();
    labels.unwrap_or_else(|| {
        keys.refuse(KEY, "the numbers of the classes are to go from 0 on");
        Vec::new()
    })
}

/// The names that transformers gives so many classes.
pub(super) fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|label| format!("LABEL_{label}")).collect()
}

/// The names for so many classes: these if they are as many, else numbered ones.
pub(super) fn for_count(labels: Vec<String>, count: usize) -> Vec<String> {
    match labels.len() == count {
        true => labels,
        false => numbered(count),
    }
}
