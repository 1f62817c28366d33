//! What `config.json` must say of a merged model: the size of the vocabulary, and whether the head
//! shares the embedding's weight.

use super::change::Start;
use super::plan::Plan;
use super::tying::{Tie, is_head, says_tied};
use crate::Result;
use crate::peft::keys::is_embedding;
use indexmap::IndexMap;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

/// Where a configuration names the weights' dtype, by the version of transformers.
const DTYPES: [&str; 2] = ["torch_dtype", "dtype"];
const TIED: &str = "tie_word_embeddings";
const VOCABULARY: &str = "vocab_size";

/// The entries that are true of the result and not of the base.
pub(super) fn changed(plan: &Plan, tie: Option<&Tie>) -> Result<IndexMap<String, Value>> {
    let base = &plan.base;
    let mut settings = IndexMap::new();
    let Some(config) = base.model_config()? else {
        return Ok(settings);
    };
    if let Some(name) = plan.dtype.and_then(name_of) {
        for key in DTYPES.iter().filter(|key| config.get(key).is_some()) {
            settings.insert(key.to_string(), json!(name));
        }
    }
    let mut names = plan.changes.keys().filter(|name| is_embedding(name));
    let rows = names.find_map(|name| {
        let before = base.shape(name)?.first().copied();
        let (_, shape) = plan.outcome(name)?;
        shape.first().copied().filter(|rows| Some(*rows) != before)
    });
    if let Some(rows) = rows {
        settings.insert(VOCABULARY.into(), json!(rows));
    }
    let is_apart = match tie {
        Some(tie) => {
            let change = plan.changes.get(&tie.head);
            change.is_some_and(|change| !matches!(change.start, Start::Merged(_)))
        }
        // A head in the checkpoint that is not the embedding's weight, or one that comes new.
        None => {
            let mut names = base.names().chain(plan.new_tensors());
            says_tied(&config) == Some(true) && names.any(is_head)
        }
    };
    if is_apart {
        settings.insert(TIED.into(), json!(false));
    }
    Ok(settings)
}

/// PyTorch's name of a dtype.
fn name_of(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F64 => Some("float64"),
        Dtype::F32 => Some("float32"),
        Dtype::F16 => Some("float16"),
        Dtype::BF16 => Some("bfloat16"),
        _ => None,
    }
}

/// Puts the settings into a configuration: where it has them, or else at its top. A model of text
/// and images keeps those of its text model apart.
pub(super) fn put(config: &mut Value, settings: &IndexMap<String, Value>) {
    for (key, value) in settings {
        let text = config.get_mut("text_config").and_then(Value::as_object_mut);
        let in_text = text.and_then(|text| text.get_mut(key));
        let is_in_text = in_text.map(|old| *old = value.clone()).is_some();
        if let Some(config) = config.as_object_mut()
            && (!is_in_text || config.contains_key(key))
        {
            config.insert(key.clone(), value.clone());
        }
    }
}
