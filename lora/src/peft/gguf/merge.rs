//! Merging an adapter into a model in a GGUF file, in the types of its blocks.

use super::GgufOptions;
use super::write::{Plan, plan};
use crate::adapter::quantised::quantise;
use crate::error::shorten;
use crate::file;
use crate::gguf::GgufFile;
use crate::gguf::{archs, names};
use crate::peft::AdapterDir;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

/// What [`merge_gguf`] did.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GgufMergeReport {
    /// llama.cpp's name of each weight that changed, in the order of the adapter, with the relative error
    /// that its blocks bring: ‖stored − merged‖ / ‖merged‖.
    pub layers: Vec<(String, f64)>,
}

/// Merges the adapter of a directory into a model in a GGUF file, and writes the sum as another GGUF file:
/// W + s·B·A, computed in f32 and stored in the type that W has.
///
/// One weight at a time is in memory. All else of the file is copied as it is. Storing the sum in blocks
/// rounds it, as quantising always does; the report says by how much.
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
/// If the base is no model in a single GGUF file, or of an architecture that is not known; all that
/// [`adapter_to_gguf`](super::adapter_to_gguf) refuses of an adapter; weights that the base lacks or has
/// in another shape, listed; if a file cannot be read or written. The file that was there before then
/// stays.
pub fn merge_gguf(
    base: impl AsRef<Path>,
    adapter: impl Into<AdapterDir>,
    out: impl AsRef<Path>,
) -> Result<GgufMergeReport> {
    let (path, out) = (base.as_ref(), out.as_ref());
    let dir = adapter.into();
    let base = GgufFile::open(path)?;
    if base.parts() > 1 {
        let problem = format!("is one of {} parts: join the parts first", base.parts());
        return Err(Error::file(path, problem));
    }
    let options = options(&base)?;
    let Some(arch) = options.arch.as_deref().and_then(archs::named) else {
        let arch = shorten(options.arch.as_deref().unwrap_or_default());
        let problem = format!("is of the architecture \"{arch}\": {}", archs::known());
        return Err(Error::file(path, problem));
    };
    let plan = plan(&dir, arch, &options)?;
    check(&base, &plan)?;

    let written = |error: io::Error| Error::file(out, format!("cannot be written: {error}"));
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let staged = file::temporary(parent).map_err(written)?;
    let mut to = staged.as_file();
    let mut from = File::open(path).map_err(|error| Error::file(path, error))?;
    io::copy(&mut from, &mut to).map_err(written)?;
    let mut report = GgufMergeReport::default();
    for name in plan.pairs.keys() {
        let (start, bytes, error) = merged(&base, &plan, name)?;
        to.seek(SeekFrom::Start(start)).map_err(written)?;
        to.write_all(&bytes).map_err(written)?;
        report.layers.push((format!("{name}.weight"), error));
    }
    to.sync_all().map_err(written)?;
    staged.persist(out).map_err(|error| written(error.error))?;
    file::sync(parent);
    Ok(report)
}

/// What the base's metadata say of the order of its rows.
fn options(base: &GgufFile) -> Result<GgufOptions> {
    let arch = base.text("general.architecture").unwrap_or_default();
    let count = |key: &str| base.count(&format!("{arch}.attention.{key}"));
    let heads = count("head_count");
    let mut options = GgufOptions::new(arch).tied(base.info("output.weight").is_none());
    (options.heads, options.kv_heads) = (heads, count("head_count_kv").or(heads));
    Ok(options)
}

/// Every update has its weight.
fn check(base: &GgufFile, plan: &Plan) -> Result<()> {
    let mut problems = Vec::new();
    for (name, pair) in &plan.pairs {
        let (outputs, inputs) = shape(name, (pair.outputs, pair.inputs));
        match base.info(&format!("{name}.weight")) {
            None => problems.push(format!("lacks `{name}.weight`, which the adapter changes")),
            Some(info) if (info.rows, info.columns) != (outputs, inputs) => {
                problems.push(format!(
                    "has `{name}.weight` of shape {:?}, the adapter's is {:?}",
                    [info.rows, info.columns],
                    [outputs, inputs]
                ));
            }
            Some(_) => {}
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::File {
            path: base.path().into(),
            problems,
        }),
    }
}

/// Rows and columns of a weight with these outputs and inputs: a lookup's rows are its inputs.
fn shape(name: &str, (outputs, inputs): (usize, usize)) -> (usize, usize) {
    match name == names::TOKENS {
        true => (inputs, outputs),
        false => (outputs, inputs),
    }
}

/// Where the weight lies, its bytes with the update in it, and their relative error.
fn merged(base: &GgufFile, plan: &Plan, name: &str) -> Result<(u64, Vec<u8>, f64)> {
    let (pair, weight) = (&plan.pairs[name], format!("{name}.weight"));
    let failed = |problem: String| Error::file(base.path(), format!("`{weight}` {problem}"));
    let Some(info) = base.info(&weight) else {
        return Err(failed("is missing".into()));
    };
    // With the rank as alpha, llama.cpp's factor is 1, and B holds the scaling.
    let update = pair.values(&plan.weights, pair.rank() as f64, DType::F32);
    let [a, b] = update.map_err(failed)?;
    let update = match name == names::TOKENS {
        true => a.matmul(&b.t()?)?,
        false => b.matmul(&a)?,
    };
    let before: Tensor = base
        .blocks(&weight, None, &Device::Cpu)?
        .dequantize(&Device::Cpu)?;
    let (blocks, error) = quantise(&(before + update)?, info.kind)?;
    let bytes = blocks.data()?.into_owned();
    match bytes.len() as u64 == info.size {
        true => Ok((info.start, bytes, error)),
        false => Err(failed(format!(
            "became {} bytes of {}",
            bytes.len(),
            info.size
        ))),
    }
}
