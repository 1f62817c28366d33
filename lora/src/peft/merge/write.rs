//! Writing a merged checkpoint.

use super::MergeOptions;
use super::plan::{Plan, parts};
use super::settings;
use crate::file::{read_bounded, stage, sync, temporary};
use crate::peft::AdapterDir;
use crate::peft::config::json_bytes;
use crate::{Error, Result, gguf};
use candle_core::Tensor;
use indexmap::IndexMap;
use safetensors::tensor::Metadata;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// What a merge did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergeReport {
    /// Names of the tensors that the adapter changed or added.
    pub changed: Vec<String>,
    /// Number of tensors that stayed as they were.
    pub unchanged: usize,
    /// The files written.
    pub files: Vec<PathBuf>,
    /// Entries of the model's `config.json` that are true of the result and not of the base:
    /// `vocab_size` where the vocabulary grew, `tie_word_embeddings` where a head no longer shares
    /// the embedding's weight. [`MergeOptions::copy_files`] writes these into the copy; without it,
    /// a model that loads the result needs them.
    pub settings: IndexMap<String, Value>,
}

/// Merges an adapter of PEFT's into a checkpoint, without the model's code.
///
/// If `base` is a `.safetensors` file, `out` is such a file too. If `base` is a directory with one
/// such file, an index of shards, or the index's directory, `out` is a directory that gets the same
/// files. If `base` is a GGUF file, or the first of its parts, `out` is a directory in the format of
/// transformers: weights, dequantised and under transformers' names, `config.json` and the tokenizer's
/// files, all made of the metadata. A warning tells of a tokenizer that cannot be written.
/// [`MergeOptions::dtype`] chooses the dtype.
///
/// One tensor at a time is in memory, which takes about three times its size. It is computed
/// in f32 (f64 for f64 weights) and rounded once. The files appear under their names when all are
/// written.
///
/// [`MergeOptions::first`] merges several, one after the other.
///
/// The adapters may be those of linear layers (stored as (out, in) or (in, out)), convolutions
/// without groups, embeddings, attention layers and bare parameters, with rsLoRA, DoRA, patterns,
/// and a bias on B. Modules, biases and tokens that were trained in full are merged too. The result
/// is that of PEFT's `merge_and_unload`, with one exception: where an embedding and a head share a
/// weight, their update is added once, as in PEFT's unmerged model. Merging in PEFT adds it twice.
///
/// ```no_run
/// use lora::peft::merge_checkpoint;
///
/// merge_checkpoint("llama/model.safetensors", "my-adapter", "merged.safetensors")?;
/// # Ok::<(), lora::Error>(())
/// ```
///
/// # Errors
/// If a tensor of the adapter has no place in the base, or a target has no tensor in the adapter;
/// if shapes do not fit, or can be read in two ways; if a merged value is not finite; if a file is
/// damaged or cannot be written. All problems are listed, and nothing is written. [`MergeOptions`]
/// can allow some of these.
pub fn merge_checkpoint(
    base: impl AsRef<Path>,
    adapter: impl Into<AdapterDir>,
    out: impl AsRef<Path>,
) -> Result<MergeReport> {
    merge_checkpoint_with(base, adapter, out, &MergeOptions::new())
}

/// As [`merge_checkpoint`], with options.
///
/// # Errors
/// Those of [`merge_checkpoint`].
pub fn merge_checkpoint_with(
    base: impl AsRef<Path>,
    adapter: impl Into<AdapterDir>,
    out: impl AsRef<Path>,
    options: &MergeOptions,
) -> Result<MergeReport> {
    let (adapter, out) = (adapter.into(), out.as_ref());
    let base = gguf::open_directory(base.as_ref())?;
    let plan = Plan::new(base, &adapter, options)?;
    let (base, original) = (&*plan.base, &*plan.original);
    let dir = match &base.dir {
        Some(_) => out,
        None => match out.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        },
    };
    let failed = |error: io::Error| Error::file(out, format!("cannot be written: {error}"));
    std::fs::create_dir_all(dir).map_err(failed)?;
    let mut staged = Vec::new();
    let mut work = Work {
        plan: &plan,
        options,
        done: 0,
        all: base.names().count() + plan.new_tensors().count(),
    };
    for (place, shard) in base.shards.iter().enumerate() {
        let path = match (&base.dir, shard.name()) {
            (Some(_), Some(name)) => dir.join(name),
            _ => out.into(),
        };
        if is_same_file(&path, shard.path()) {
            return Err(Error::file(&path, "is the base itself: name another place"));
        }
        let file = temporary(dir).map_err(failed)?;
        let file = work.shard(place, file)?;
        staged.push((file, path));
    }
    if let Some((name, index)) = &base.index {
        let index = updated(index, &plan);
        let bytes = json_bytes(&index).map_err(|e| Error::file(out, e))?;
        staged.push((stage(dir, &bytes).map_err(failed)?, dir.join(name)));
    }
    for (name, json) in &original.files {
        let mut json = json.clone();
        if name == CONFIG {
            settings::put(&mut json, &plan.settings);
        }
        let bytes = json_bytes(&json).map_err(|error| Error::file(out, error))?;
        staged.push((stage(dir, &bytes).map_err(failed)?, dir.join(name)));
    }
    if options.copy_files
        && original.files.is_empty()
        && let Some(from) = &base.dir
    {
        copy_files(from, dir, &plan.settings, &mut staged)?;
    }
    let mut files = Vec::new();
    // Every file is whole before the first gets its name. The index follows the shards, so that a
    // crash in between leaves no new index that names a missing shard.
    for (file, path) in staged {
        file.persist(&path).map_err(|error| failed(error.error))?;
        files.push(path);
    }
    sync(dir);
    let changed: Vec<String> = plan.changed().map(String::from).collect();
    let touched = changed.iter().filter(|name| original.contains(name));
    Ok(MergeReport {
        unchanged: original.names().count() - touched.count(),
        changed,
        files,
        settings: plan.settings,
    })
}

const CONFIG: &str = "config.json";

/// Whether two paths lead to one file that exists.
pub(in crate::peft) fn is_same_file(a: &Path, b: &Path) -> bool {
    let both = a.canonicalize().ok().zip(b.canonicalize().ok());
    both.is_some_and(|(a, b)| a == b)
}

/// A merge on its way.
struct Work<'a> {
    plan: &'a Plan,
    options: &'a MergeOptions,
    done: usize,
    all: usize,
}

impl Work<'_> {
    /// Writes a shard with its changes, and the new tensors behind the last one's.
    fn shard(&mut self, place: usize, file: NamedTempFile) -> Result<NamedTempFile> {
        let (base, plan) = (&self.plan.base, self.plan);
        let shard = &base.shards[place];
        let infos = plan.layout(place);
        let path = base.path.clone();
        let wrong = |error: &dyn std::fmt::Display| Error::file(&path, error.to_string());
        let metadata = shard.metadata().cloned();
        let metadata = metadata.or_else(|| Some(HashMap::from([("format".into(), "pt".into())])));
        let names: Vec<String> = infos.keys().cloned().collect();
        let header =
            Metadata::new(metadata, infos.into_iter().collect()).map_err(|error| wrong(&error))?;
        let mut header = serde_json::to_vec(&header).map_err(|error| wrong(&error))?;
        // The format wants the data aligned to 8 bytes.
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut out = BufWriter::new(file);
        let failed = |error: io::Error| Error::file(&path, format!("writing it merged: {error}"));
        let length = (header.len() as u64).to_le_bytes();
        out.write_all(&length).map_err(failed)?;
        out.write_all(&header).map_err(failed)?;
        for name in &names {
            if plan.touches(name) {
                for part in parts(&plan.apply(name)?)? {
                    out.write_all(&bytes(&part?)?).map_err(failed)?;
                }
            } else {
                shard.copy(name, &mut out)?;
            }
            self.done += 1;
            if let Some(progress) = &self.options.progress {
                progress(self.done, self.all, name);
            }
        }
        let file = out
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        Ok(file)
    }
}

/// The bytes of a tensor as a file has them.
pub(super) fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    use safetensors::View;
    let tensor = tensor.contiguous()?;
    Ok(tensor.data().into_owned())
}

/// The index with the new tensors in it.
pub(super) fn updated(index: &Value, plan: &Plan) -> Value {
    let (mut index, base) = (index.clone(), &plan.base);
    let (mut added, mut removed) = (0, 0);
    for name in base.names().chain(plan.new_tensors()) {
        if let Some((dtype, shape)) = plan.outcome(name) {
            let elements: usize = shape.iter().product();
            added += (elements * dtype.bitsize() / 8) as u64;
        }
        if let Some(info) = base.info(name) {
            removed += (info.data_offsets.1 - info.data_offsets.0) as u64;
        }
    }
    if let Some(total) = index.pointer_mut("/metadata/total_size")
        && let Some(number) = total.as_u64()
    {
        *total = json!((number + added).saturating_sub(removed));
    }
    let last = base.shards.last().and_then(|shard| shard.name());
    if let Some(last) = last
        && let Some(map) = index.get_mut("weight_map").and_then(Value::as_object_mut)
    {
        for name in plan.new_tensors() {
            map.insert(name.into(), json!(last));
        }
    }
    index
}

/// Stages copies of the files beside the weights.
fn copy_files(
    from: &Path,
    dir: &Path,
    settings: &IndexMap<String, Value>,
    staged: &mut Vec<(NamedTempFile, PathBuf)>,
) -> Result<()> {
    let failed = |error: io::Error| Error::file(from, format!("cannot be copied: {error}"));
    let weights = [
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".gguf",
        ".h5",
        ".msgpack",
        ".onnx",
    ];
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        let text = name.to_string_lossy();
        let skipped = text.starts_with('.')
            || text.ends_with(".index.json")
            || weights.iter().any(|end| text.ends_with(end));
        if skipped || !path.is_file() {
            continue;
        }
        // With the old settings, a model would ignore the head's own weight, or refuse the new rows.
        if !settings.is_empty() && text == CONFIG {
            let config = serde_json::from_slice(&read_bounded(&path)?);
            let mut config: Value = config.map_err(|error| Error::file(&path, error))?;
            settings::put(&mut config, settings);
            let bytes = json_bytes(&config).map_err(|error| Error::file(&path, error))?;
            staged.push((stage(dir, &bytes).map_err(failed)?, dir.join(name)));
            continue;
        }
        let mut source = std::fs::File::open(&path).map_err(failed)?;
        let mut file = temporary(dir).map_err(failed)?;
        io::copy(&mut source, &mut file).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        staged.push((file, dir.join(name)));
    }
    Ok(())
}
