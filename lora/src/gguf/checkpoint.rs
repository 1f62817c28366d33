//! A model in a GGUF file as a checkpoint of transformers.

use super::weights::Weights;
use super::{config, tokenizer};
use crate::error::{shorten, warn};
use crate::file::{Checkpoint, INDEX, Shard};
use crate::{Error, Result};
use candle_core::Tensor;
use indexmap::IndexMap;
use safetensors::tensor::{Dtype, TensorInfo};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

const MODEL: &str = "model.safetensors";

/// Opens a model whose architecture is read whole. Its tensors are dequantised, to f32, when they are
/// asked for. `config.json`, made of the metadata, stands beside.
///
/// # Errors
/// Those of [`Weights::open`], settings without a name in transformers, and tensors that are not known.
pub(super) fn checkpoint(path: &Path) -> Result<Checkpoint> {
    let (weights, config) = read(path)?;
    of(Arc::new(weights), IndexMap::from([config]))
}

/// As [`checkpoint`], with the tokenizer's files beside. A warning tells of a tokenizer that cannot be
/// written.
pub(super) fn directory(path: &Path) -> Result<Checkpoint> {
    let (weights, config) = read(path)?;
    let mut beside = IndexMap::from([config]);
    match tokenizer::files(&weights.file) {
        Ok((tokenizer, config)) => {
            beside.insert("tokenizer.json".into(), tokenizer);
            beside.insert("tokenizer_config.json".into(), config.into());
        }
        Err(error) => warn(&format!("no tokenizer is written: {error}")),
    }
    of(Arc::new(weights), beside)
}

/// The tensors, and the name and contents of the model's configuration.
fn read(path: &Path) -> Result<(Weights, (String, Value))> {
    let (weights, family) = Weights::open_whole(path)?;
    let read = config::read(&weights.file, family)?;
    let mut problems: Vec<String> = weights
        .strangers
        .iter()
        .filter(|name| !Weights::is_table(name))
        .map(|name| format!("`{}` has no name in transformers", shorten(name)))
        .collect();
    let has = |name: &str| weights.file.info(&format!("blk.0.{name}.bias")).is_some();
    let has_all = read.json.get("attention_bias") == Some(&Value::Bool(true));
    if has_all != has("attn_output") {
        problems.push(
            "has biases of queries and not of the attention's output, or the other way round: no \
             `config.json` can say that"
                .into(),
        );
    }
    if !problems.is_empty() {
        return Err(Error::File {
            path: path.into(),
            problems,
        });
    }
    for note in &read.without_effect {
        warn(&format!("{}: {note}", path.display()));
    }
    Ok((weights, ("config.json".into(), read.json.into())))
}

/// A model of any architecture that is known, for an adapter to be merged into its file.
pub(crate) fn of_any(weights: &Arc<Weights>) -> Result<Checkpoint> {
    let is_tied = weights.file.info("output.weight").is_none();
    let config = json!({"tie_word_embeddings": is_tied});
    let beside = IndexMap::from([("config.json".to_string(), config)]);
    of(weights.clone(), beside)
}

fn of(weights: Arc<Weights>, beside: IndexMap<String, Value>) -> Result<Checkpoint> {
    let paths = weights.file.paths();
    let count = paths.len();
    let name = |index: usize| match count {
        1 => MODEL.to_string(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    let mut shards: Vec<GgufShard> = (0..count)
        .map(|index| GgufShard {
            weights: weights.clone(),
            index,
            name: name(index),
            tensors: IndexMap::new(),
        })
        .collect();
    let (mut map, mut total) = (Map::new(), 0);
    for parameter in weights.names() {
        let Some(place) = weights.place(parameter) else {
            continue;
        };
        let shard = &mut shards[weights.file.part_of(&place.parts[0].name)];
        let last = shard.tensors.values().last();
        let start = last.map_or(0, |info: &TensorInfo| info.data_offsets.1);
        let size = place.shape.iter().product::<usize>() * size_of::<f32>();
        let info = TensorInfo {
            dtype: Dtype::F32,
            shape: place.shape.clone(),
            data_offsets: (start, start + size),
        };
        shard.tensors.insert(parameter.into(), info);
        map.insert(parameter.into(), shard.name.clone().into());
        total += size;
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    let index = (count > 1).then(|| (format!("model{INDEX}"), index));
    let path = weights.file.path();
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let shards = shards.into_iter().map(|shard| Box::new(shard) as _);
    let checkpoint = Checkpoint::of(path, Some(dir), index, shards.collect())?;
    Ok(checkpoint.with_files(beside))
}

/// The tensors of one file.
#[derive(Debug)]
struct GgufShard {
    weights: Arc<Weights>,
    index: usize,
    name: String,
    tensors: IndexMap<String, TensorInfo>,
}

impl Shard for GgufShard {
    fn path(&self) -> &Path {
        &self.weights.file.paths()[self.index]
    }

    fn name(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn tensors(&self) -> &IndexMap<String, TensorInfo> {
        &self.tensors
    }

    fn metadata(&self) -> Option<&HashMap<String, String>> {
        None
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.weights.tensor(name)
    }

    fn copy(&self, name: &str, to: &mut dyn Write) -> Result<()> {
        let written = self.weights.tensor(name)?.write_bytes(&mut Writer(to));
        written.map_err(|error| Error::file(self.path(), error))
    }
}

/// `write_bytes` wants a type of known size.
struct Writer<'a>(&'a mut dyn Write);

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}
