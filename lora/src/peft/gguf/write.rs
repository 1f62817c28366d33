//! From a directory to GGUF.

use super::plan::{self as places, MERGE};
use super::sources::Pair;
use super::{GgufOptions, VERSION};
use crate::adapter::Part;
use crate::config::naming::Naming;
use crate::config::selection::misfits;
use crate::file;
use crate::gguf::archs::{self, Arch};
use crate::gguf::{ALIGNMENT, names, types};
use crate::path::join;
use crate::peft::experts::are_old;
use crate::peft::tensors::Tensors;
use crate::peft::weights::Weights;
use crate::peft::{AdapterConfig, AdapterDir, CONFIG_FILE, WEIGHTS_FILE, files, keys};
use crate::{Error, LoraConfig, Result, TrainBias};
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Tensor};
use indexmap::IndexMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Writes the adapter of a directory as a GGUF file, which llama.cpp applies to the base model.
///
/// [`arch`](GgufOptions::arch) of the options must be set, for some the numbers of heads or experts
/// too; [`from_model_config`](GgufOptions::from_model_config) sets all of these. A GGUF file has one
/// alpha and no rank-stabilised scaling: if a layer's scaling is not this alpha over its rank, B is
/// multiplied by the missing factor. Adapters of experts become one pair of tensors a layer, whether
/// the file has a module for each expert or one weight for all; experts without an adapter get
/// zeros. The base weight that PEFT stores with an adapted embedding is left out, as llama.cpp has
/// its own.
///
/// # Errors
/// Lists what GGUF cannot hold: DoRA, biases, modules trained in full, trained tokens, adapters of
/// other parameters than experts', tied adapters, a residual base; layers without a name in
/// llama.cpp, and those whose adapter llama.cpp would pass over in silence; the embedding and the
/// head where these are one weight, for which llama.cpp has no adapter; tensors that are not A or B,
/// lack the other, or do not have the configuration's rank; values that are not finite in the dtype
/// of the options. It is also an error if a file cannot be read or written. The file that was there
/// before then stays.
pub fn adapter_to_gguf(
    dir: impl Into<AdapterDir>,
    gguf: impl AsRef<Path>,
    options: &GgufOptions,
) -> Result<()> {
    let (dir, path) = (dir.into(), gguf.as_ref());
    let Some(arch) = options.arch.as_deref().and_then(archs::named) else {
        let is = options.arch.as_deref().map(|arch| format!("is {arch:?}"));
        let problem = format!(
            "`arch` of the options {}: {}",
            is.as_deref().unwrap_or("is missing"),
            archs::known()
        );
        return Err(Error::Config(vec![problem]));
    };
    let kind = match options.dtype {
        DType::F32 => GgmlDType::F32,
        DType::F16 => GgmlDType::F16,
        DType::BF16 => GgmlDType::BF16,
        dtype => {
            let problem =
                format!("`dtype` of the options is {dtype:?}: it must be F32, F16 or BF16");
            return Err(Error::Config(vec![problem]));
        }
    };
    let Plan {
        file,
        weights,
        alpha,
        pairs,
    } = plan(&dir, arch, options)?;
    let failed = |problems| Error::File {
        path: dir.path().join(WEIGHTS_FILE),
        problems,
    };
    let header = header(arch.name, alpha, &file, pairs.values(), kind);
    let header = header.map_err(|problem| failed(vec![problem]))?;

    let written = |error: io::Error| Error::file(path, format!("cannot be written: {error}"));
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let staged = file::temporary(parent).map_err(written)?;
    let mut to = BufWriter::new(staged.as_file());
    to.write_all(&header).map_err(written)?;
    let mut problems = Vec::new();
    for pair in pairs.values() {
        match pair.values(&weights, f64::from(alpha), options.dtype) {
            Ok(tensors) => {
                for tensor in tensors {
                    write(&mut to, &tensor).map_err(written)?;
                }
            }
            Err(problem) => problems.push(format!("`{}` {problem}", pair.path())),
        }
    }
    if !problems.is_empty() {
        return Err(failed(problems));
    }
    to.flush().map_err(written)?;
    drop(to);
    staged.as_file().sync_all().map_err(written)?;
    staged.persist(path).map_err(|error| written(error.error))?;
    file::sync(parent);
    Ok(())
}

/// The updates of a directory's adapter, as an architecture of llama.cpp has them.
struct Plan {
    file: AdapterConfig,
    weights: Tensors,
    alpha: f32,
    /// By llama.cpp's name of the weight.
    pairs: IndexMap<String, Pair>,
}

/// Reads the adapter of a directory.
fn plan(dir: &AdapterDir, arch: &'static Arch, options: &GgufOptions) -> Result<Plan> {
    let (file, Weights { mut tensors }) = files::open_pair(dir)?;
    let mut config = settings(&file).map_err(|problems| Error::File {
        path: dir.path().join(CONFIG_FILE),
        problems,
    })?;
    let failed = |problems| Error::File {
        path: dir.path().join(WEIGHTS_FILE),
        problems,
    };
    config.naming = name(&mut tensors, arch, dir).map_err(|problem| failed(vec![problem]))?;
    let weights = tensors;
    // Zero means a scaling of 1 in GGUF.
    let alpha = match config.alpha as f32 {
        alpha if alpha.is_finite() && alpha != 0.0 => alpha,
        _ => config.rank as f32,
    };
    if !config.naming.is_same() {
        let of_file = misfits(&config, ranks(&weights))?;
        config.naming.settings_mean_model(true);
        let of_model = misfits(&config, ranks(&weights))?;
        config.naming.settings_mean_model(of_model < of_file);
    }
    let (pairs, problems) = places::pairs(&weights, &config, arch, options, are_old(dir, &file))?;
    if !problems.is_empty() {
        return Err(failed(problems));
    }
    Ok(Plan {
        file,
        weights,
        alpha,
        pairs,
    })
}

/// The paths of the modules in the file, with their ranks.
fn ranks(tensors: &Tensors) -> Vec<(String, usize)> {
    let modules = tensors.keys().iter().filter_map(|(bare, key)| {
        let parsed = keys::parse(bare).filter(|parsed| parsed.part == Part::A)?;
        let rank = *tensors.tensors().get(key)?.shape.first()?;
        Some((parsed.path.to_string(), rank))
    });
    modules.collect()
}

/// Puts llama.cpp's idea of the model's paths in place of the file's.
fn name(tensors: &mut Tensors, arch: &Arch, dir: &AdapterDir) -> Result<Naming, String> {
    let paths = tensors.paths();
    // There is no model: any end of a path that is one of llama.cpp's may be meant.
    let ends = paths.iter().flat_map(|path| {
        let dots = path.match_indices('.').map(|(dot, _)| &path[dot + 1..]);
        dots.chain([path.as_str()])
    });
    let known = ends.flat_map(|end| [end.to_string(), join("model", end)]);
    let known: Vec<String> = known
        .filter(|path| !names::to_gguf(arch, path).is_empty())
        .collect();
    let known = known.iter().map(String::as_str).collect();
    let naming = Naming::find(paths.iter().map(String::as_str), &known, &dir.renames)?;
    tensors.rename(&naming)?;
    naming.notes().iter().for_each(|note| dir.tell(note));
    Ok(naming)
}

/// The settings, or all that GGUF has no place for.
fn settings(file: &AdapterConfig) -> Result<LoraConfig, Vec<String>> {
    let features = [
        ("use_dora", file.use_dora),
        ("lora_bias", file.lora_bias),
        ("bias", file.bias != TrainBias::None),
        (
            "modules_to_save",
            file.modules_to_save.as_ref().is_some_and(|m| !m.is_empty()),
        ),
        (
            "trainable_token_indices",
            file.trainable_token_indices.is_some(),
        ),
        ("ensure_weight_tying", file.ensure_weight_tying),
        ("init_lora_weights", file.init_lora_weights.changes_base()),
    ];
    let on = features.iter().filter(|(_, on)| *on);
    let mut problems: Vec<String> = on
        .map(|(key, _)| {
            format!("`{key}` is set to a value that a GGUF adapter cannot hold: {MERGE}")
        })
        .collect();
    match file.lora_config() {
        Ok(config) if problems.is_empty() => Ok(config),
        Ok(_) => Err(problems),
        Err(more) => {
            problems.extend(more);
            Err(problems)
        }
    }
}

/// Everything before the data.
fn header<'a>(
    arch: &str,
    alpha: f32,
    file: &AdapterConfig,
    pairs: impl Iterator<Item = &'a Pair>,
    kind: GgmlDType,
) -> Result<Vec<u8>, String> {
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    let mut fields = vec![
        ("general.architecture", arch),
        ("general.type", "adapter"),
        ("adapter.type", "lora"),
    ];
    let base = file.base_model_name_or_path.as_deref();
    fields.extend(base.map(|base| ("general.base_model.0.name", base)));
    let tensors = pairs.flat_map(|pair| {
        let experts = pair.source.experts();
        pair.tensors()
            .map(|(name, rows, columns)| (name, rows, columns, experts))
    });
    let tensors: Vec<_> = tensors.collect();

    let mut bytes = b"GGUF".to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    let count = fields.len() + 1 + usize::from(base.is_some());
    bytes.extend((count as u64).to_le_bytes());
    for (key, value) in fields {
        text(&mut bytes, key);
        bytes.extend(8u32.to_le_bytes());
        text(&mut bytes, value);
    }
    if base.is_some() {
        text(&mut bytes, "general.base_model.count");
        bytes.extend(4u32.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
    }
    text(&mut bytes, "adapter.lora.alpha");
    bytes.extend(6u32.to_le_bytes());
    bytes.extend(alpha.to_le_bytes());
    let mut start = 0u64;
    for (name, rows, columns, experts) in tensors {
        let (rows, columns) = (rows as u64, columns as u64);
        text(&mut bytes, &name);
        let mut shape = vec![columns, rows];
        shape.extend(experts.map(|count| count as u64));
        bytes.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes.extend(types::number(kind).to_le_bytes());
        bytes.extend(start.to_le_bytes());
        let size = types::row_size(kind, columns).and_then(|row| row.checked_mul(rows));
        let size = size.and_then(|size| size.checked_mul(experts.unwrap_or(1) as u64));
        let end =
            size.and_then(|size| start.checked_add(size)?.checked_next_multiple_of(ALIGNMENT));
        start = end.ok_or_else(|| format!("`{name}` is too large"))?;
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
    Ok(bytes)
}

/// Writes the values of a tensor, padded to where the next tensor begins.
fn write(to: &mut impl Write, tensor: &Tensor) -> io::Result<()> {
    let mut bytes = Vec::new();
    tensor.write_bytes(&mut bytes).map_err(io::Error::other)?;
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
    to.write_all(&bytes)
}
