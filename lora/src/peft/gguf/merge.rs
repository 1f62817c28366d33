//! Merging an adapter into a model in a GGUF file, in the types of its blocks.

use crate::adapter::quantised::quantise;
use crate::file;
use crate::gguf::{self, Part, Weights, types};
use crate::peft::merge::{MergeOptions, Plan};
use crate::peft::{AdapterDir, merge};
use crate::{Error, Result};
use candle_core::Tensor;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::NamedTempFile;

/// What [`merge_gguf`] did.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GgufMergeReport {
    /// llama.cpp's name of each weight that changed, in the order of the adapter, with the relative error
    /// that its blocks bring: ‖stored − merged‖ / ‖merged‖. `blk.3.ffn_up_exps.weight[5]` is the weight of
    /// expert 5.
    pub layers: Vec<(String, f64)>,
    /// The files written.
    pub files: Vec<PathBuf>,
}

/// Merges the adapter of a directory into a model in a GGUF file, and writes the sum as another GGUF file:
/// W + s·B·A, computed in f32 and stored in the type that W has.
///
/// One weight at a time is in memory. All else of the file is copied as it is. Storing the sum in blocks
/// rounds it, as quantising always does; the report says by how much. To store the sum in full precision,
/// merge into a directory: [`merge_checkpoint`](crate::peft::merge_checkpoint) takes a GGUF file, too.
///
/// A base in parts, `..-00001-of-00003.gguf`, gives as many parts: `out` names the first in the same way.
/// What an adapter may hold is what [`merge_checkpoint`](crate::peft::merge_checkpoint) takes, with DoRA,
/// biases, experts, and modules or tokens that were trained in full.
///
/// ```no_run
/// let report = lora::peft::merge_gguf("model.Q4_1.gguf", "adapter", "merged.Q4_1.gguf")?;
/// for (name, error) in &report.layers {
///     println!("{name}: {:.2} %", 100.0 * error);
/// }
/// # Ok::<(), lora::Error>(())
/// ```
///
/// # Errors
/// If the base is no model in a GGUF file, or of an architecture that is not known; all that
/// [`merge_checkpoint`](crate::peft::merge_checkpoint) refuses; tensors that the file has no place for; if a
/// file cannot be read or written. The files that were there before then stay.
pub fn merge_gguf(
    base: impl AsRef<Path>,
    adapter: impl Into<AdapterDir>,
    out: impl AsRef<Path>,
) -> Result<GgufMergeReport> {
    merge_gguf_with(base, adapter, out, &MergeOptions::new())
}

/// As [`merge_gguf`], with options. [`untie`](MergeOptions::untie) gives a file without `output.weight` one,
/// in the type of the embedding.
///
/// # Errors
/// Those of [`merge_gguf`], and [`dtype`](MergeOptions::dtype) among the options.
pub fn merge_gguf_with(
    base: impl AsRef<Path>,
    adapter: impl Into<AdapterDir>,
    out: impl AsRef<Path>,
    options: &MergeOptions,
) -> Result<GgufMergeReport> {
    let (base, out) = (base.as_ref(), out.as_ref());
    if options.dtype.is_some() {
        let problem = "`dtype` is set: each weight of a GGUF file keeps its type. merge_checkpoint writes \
                       a directory in another one";
        return Err(Error::Config(vec![problem.into()]));
    }
    let file = gguf::find(base)?;
    let weights = Arc::new(Weights::open(file.as_deref().unwrap_or(base))?);
    let checkpoint = gguf::of_any(&weights)?;
    // llama.cpp's converter stores every weight as (out, in).
    let options = options.clone().fan_in_fan_out(false);
    let plan = Plan::new(checkpoint, &adapter.into(), &options)?;
    let head = check(&weights, &plan)?;
    let paths = places(&weights, out)?;

    let mut files = Vec::new();
    for (part, path) in paths.iter().enumerate() {
        files.push(Copy::start(&weights, part, path, head.as_deref())?);
    }
    let mut report = GgufMergeReport::default();
    for name in plan.changed() {
        let sum = plan.apply(name)?;
        if head.as_deref() == Some(name) {
            let (blocks, error) = quantise(&sum, embedding(&weights)?.kind)?;
            let bytes = blocks.data()?;
            let place = files[0].head;
            files[0].write(place, &bytes)?;
            report.layers.push((HEAD.into(), error));
            continue;
        }
        for (part, rows) in weights.to_file(name, &sum)? {
            let (file, start, bytes, error) = stored(&weights, part, &rows)?;
            let file = &mut files[file];
            file.write(start + file.shift, &bytes)?;
            report.layers.push((part.title(), error));
        }
    }
    for file in files {
        report.files.push(file.finish()?);
    }
    Ok(report)
}

const HEAD: &str = "output.weight";

/// What the file has no place for. A head of its own, for a model that has none, finds a place: its name is
/// returned.
fn check(weights: &Weights, plan: &Plan) -> Result<Option<String>> {
    let base = &plan.original;
    let mut problems = Vec::new();
    let mut head = None;
    let is_whole = weights.file.paths().len() == 1;
    for name in plan.changed().filter(|name| !base.contains(name)) {
        match weights.in_file(name) {
            Some(known) if known == HEAD && is_whole => head = Some(name.to_string()),
            Some(known) if known == HEAD => problems.push(
                "is in parts, which get no new tensor `output.weight`: join the parts first, with \
                 llama.cpp's `llama-gguf-split --merge`"
                    .into(),
            ),
            _ => problems.push(format!(
                "has no `{name}`, which the adapter brings: merge into a directory, with merge_checkpoint"
            )),
        }
    }
    for name in plan.changed() {
        let after = plan.outcome(name).map(|(_, shape)| shape);
        if let (Some(before), Some(after)) = (base.shape(name), after)
            && before != after
        {
            problems.push(format!(
                "has `{name}` of shape {before:?}, the adapter's is {after:?}, and the vocabulary of a GGUF \
                 file cannot grow: merge into a directory, with merge_checkpoint"
            ));
        }
    }
    match problems.is_empty() {
        true => Ok(head),
        false => Err(Error::File {
            path: base.path.clone(),
            problems,
        }),
    }
}

/// The files to write, one for each of the base.
fn places(weights: &Weights, out: &Path) -> Result<Vec<PathBuf>> {
    let base = weights.file.paths();
    let parts = gguf::all_parts(out)?;
    if parts.len() != base.len() {
        let (all, has) = (base.len(), parts.len());
        let problem = match all {
            1 => format!("is named as one of {has} parts: the base is a single file"),
            _ => format!(
                "is named as {has} file: the base has {all} parts, so name it `..-00001-of-{all:05}.gguf`"
            ),
        };
        return Err(Error::file(out, problem));
    }
    for (part, base) in parts.iter().zip(base) {
        if merge::is_same_file(part, base) {
            return Err(Error::file(part, "is the base itself: name another place"));
        }
    }
    Ok(parts)
}

fn embedding(weights: &Weights) -> Result<&gguf::Info> {
    let info = weights.file.info("token_embd.weight");
    info.ok_or_else(|| Error::file(weights.file.path(), "has no `token_embd.weight`"))
}

/// The file and the place of a matrix, its bytes with these values, and their relative error.
fn stored(weights: &Weights, part: &Part, rows: &Tensor) -> Result<(usize, u64, Vec<u8>, f64)> {
    let name = &part.name;
    let failed = |problem: String| Error::file(weights.file.path(), format!("`{name}` {problem}"));
    let Some(info) = weights.file.info(name) else {
        return Err(failed("is missing".into()));
    };
    let (start, size) = info.matrix(part.expert.unwrap_or(0));
    let (blocks, error) = quantise(rows, info.kind)?;
    let bytes = blocks.data()?.into_owned();
    match bytes.len() as u64 == size {
        true => Ok((weights.file.part_of(name), start, bytes, error)),
        false => Err(failed(format!("became {} bytes of {size}", bytes.len()))),
    }
}

/// A copy of one of the base's files, until it is whole.
struct Copy {
    staged: NamedTempFile,
    path: PathBuf,
    parent: PathBuf,
    /// By how many bytes all tensors lie further behind than in the base.
    shift: u64,
    /// Where the new head is.
    head: u64,
}

impl Copy {
    /// Copies the file; with a head, its list of tensors has one more.
    fn start(weights: &Weights, part: usize, path: &Path, head: Option<&str>) -> Result<Self> {
        let written = |error: io::Error| Error::file(path, format!("cannot be written: {error}"));
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut staged = file::temporary(parent).map_err(written)?;
        let base = &weights.file.paths()[part];
        let mut from = File::open(base).map_err(|error| Error::file(base, error))?;
        let (mut shift, mut place) = (0, 0);
        if head.is_some() {
            (shift, place) = with_head(weights, &mut from, staged.as_file_mut())?;
        } else {
            io::copy(&mut from, staged.as_file_mut()).map_err(written)?;
        }
        Ok(Self {
            staged,
            path: path.into(),
            parent: parent.into(),
            shift,
            head: place,
        })
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::file(&self.path, format!("cannot be written: {error}"))
    }

    fn write(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let file = self.staged.as_file_mut();
        let sought = file.seek(SeekFrom::Start(start));
        let written = sought.and_then(|_| file.write_all(bytes));
        written.map_err(|error| self.failed(error))
    }

    fn finish(self) -> Result<PathBuf> {
        let synced = self.staged.as_file().sync_all();
        synced.map_err(|error| self.failed(error))?;
        let path = self.path;
        let failed = |error| Error::file(&path, format!("cannot be written: {error}"));
        let persisted = self.staged.persist(&path);
        persisted.map_err(|error| failed(error.error))?;
        file::sync(&self.parent);
        Ok(path)
    }
}

/// Copies a file whose list of tensors gets `output.weight`, of the embedding's shape and type, behind all
/// others. Returns by how much tensors have moved, and where the new one is.
fn with_head(weights: &Weights, from: &mut File, to: &mut File) -> Result<(u64, u64)> {
    let failed = |error: io::Error| Error::file(weights.file.path(), error);
    let like = embedding(weights)?;
    let [end, data] = weights.file.ends(0);
    let alignment = weights.file.alignment();
    let length = from.metadata().map_err(failed)?.len();
    let place = (length - data).next_multiple_of(alignment);

    let mut header = Vec::new();
    let read = from.take(end).read_to_end(&mut header);
    read.map_err(failed)?;
    let count = header.get(8..16).and_then(|bytes| bytes.try_into().ok());
    let count = u64::from_le_bytes(count.unwrap_or_default()) + 1;
    header[8..16].copy_from_slice(&count.to_le_bytes());
    header.extend((HEAD.len() as u64).to_le_bytes());
    header.extend(HEAD.as_bytes());
    header.extend(2u32.to_le_bytes());
    header.extend((like.columns as u64).to_le_bytes());
    header.extend((like.rows as u64).to_le_bytes());
    header.extend(types::number(like.kind).to_le_bytes());
    header.extend(place.to_le_bytes());
    header.resize(header.len().next_multiple_of(alignment as usize), 0);

    let start = header.len() as u64;
    let copy = |from: &mut File, to: &mut File| -> io::Result<()> {
        to.write_all(&header)?;
        from.seek(SeekFrom::Start(data))?;
        io::copy(from, to)?;
        // All bytes up to the end of the new tensor.
        to.set_len(start + place + like.size)
    };
    copy(from, to).map_err(failed)?;
    Ok((start - data, start + place))
}
