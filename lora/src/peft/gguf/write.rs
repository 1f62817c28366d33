//! From a directory to GGUF.

use super::header::DataType;
use super::{ALIGNMENT, GgufOptions, VERSION, names};
use crate::adapter::Part;
use crate::config::matching::is_or_ends_with;
use crate::config::naming::Naming;
use crate::config::selection::{Overrides, Selection, misfits};
use crate::error::shorten;
use crate::file;
use crate::path::join;
use crate::peft::tensors::Tensors;
use crate::peft::weights::Weights;
use crate::peft::{AdapterConfig, AdapterDir, CONFIG_FILE, WEIGHTS_FILE, files, keys};
use crate::{Error, LoraConfig, Result, TrainBias, ops};
use candle_core::{DType, Tensor};
use indexmap::IndexMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Writes the adapter of a directory as a GGUF file, which llama.cpp applies to the base model.
///
/// [`arch`](GgufOptions::arch) of the options must be set, for `llama` the numbers of heads too;
/// [`from_model_config`](GgufOptions::from_model_config) sets all of these. A GGUF file has one
/// alpha and no rank-stabilised scaling: if a layer's scaling is not this alpha over its rank, B is
/// multiplied by the missing factor. The base weight that PEFT stores with an adapted embedding is
/// left out, as llama.cpp has its own.
///
/// # Errors
/// Lists what GGUF cannot hold: DoRA, biases, modules trained in full, trained tokens, adapters of
/// parameters, tied adapters, a residual base; layers without a name in llama.cpp; tensors that are
/// not A or B, lack the other, or do not have the configuration's rank; values that are not finite
/// in the dtype of the options. It is also an error if a file cannot be read or written. The file
/// that was there before then stays.
pub fn adapter_to_gguf(
    dir: impl Into<AdapterDir>,
    gguf: impl AsRef<Path>,
    options: &GgufOptions,
) -> Result<()> {
    let (dir, path) = (dir.into(), gguf.as_ref());
    let Some(arch) = options
        .arch
        .as_deref()
        .filter(|arch| names::ARCHS.contains(arch))
    else {
        let problem = format!(
            "`arch` of the options is {:?}: {}",
            options.arch,
            names::known()
        );
        return Err(Error::Config(vec![problem]));
    };
    let kind = match options.dtype {
        DType::F32 => DataType::F32,
        DType::F16 => DataType::F16,
        DType::BF16 => DataType::Bf16,
        dtype => {
            let problem =
                format!("`dtype` of the options is {dtype:?}: it must be F32, F16 or BF16");
            return Err(Error::Config(vec![problem]));
        }
    };
    let (file, Weights { mut tensors }) = files::open_pair(&dir)?;
    let mut config = settings(&file).map_err(|problems| Error::File {
        path: dir.path().join(CONFIG_FILE),
        problems,
    })?;
    let failed = |problems| Error::File {
        path: dir.path().join(WEIGHTS_FILE),
        problems,
    };
    config.naming = name(&mut tensors, &dir).map_err(|problem| failed(vec![problem]))?;
    let weights = tensors;
    // Zero means a scaling of 1 in GGUF.
    let alpha = match config.alpha as f32 {
        alpha if alpha.is_finite() && alpha != 0.0 => alpha,
        _ => config.rank as f32,
    };
    let layers = pairs(&weights).map_err(failed)?;
    let ranks = || layers.iter().map(|layer| (layer.path.clone(), layer.rank));
    if !config.naming.is_same() {
        let of_file = misfits(&config, ranks())?;
        config.naming.settings_mean_model(true);
        let of_model = misfits(&config, ranks())?;
        config.naming.settings_mean_model(of_model < of_file);
    }
    let mut selection = Selection::new(&config)?;
    let mut problems = Vec::new();
    let mut planned = Vec::new();
    for layer in layers {
        let settings = selection.settings(&layer.path, Overrides::default())?;
        if settings.rank != layer.rank {
            let (path, rank) = (&layer.path, layer.rank);
            let of_config = settings.rank;
            problems.push(format!(
                "`{path}` has rank {rank}, but {of_config} in the configuration"
            ));
        }
        let factor = settings.scaling * layer.rank as f64 / f64::from(alpha);
        if layer.name == "output" && matches!(arch, "gemma" | "gemma2") {
            problems.push(format!(
                "`{}` has no place: for {arch}, llama.cpp's head is the embedding",
                layer.path
            ));
        }
        match names::heads(arch, &layer.name, options) {
            Ok(heads) => planned.push((layer, factor, heads)),
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Err(failed(problems));
    }
    let header = header(
        arch,
        alpha,
        &file,
        planned.iter().map(|(layer, ..)| layer),
        kind,
    );
    let header = header.map_err(|problem| failed(vec![problem]))?;

    let written = |error: io::Error| Error::file(path, format!("cannot be written: {error}"));
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let staged = file::temporary(parent).map_err(written)?;
    let mut to = BufWriter::new(staged.as_file());
    to.write_all(&header).map_err(written)?;
    for (layer, factor, heads) in &planned {
        match layer.values(&weights, *factor, *heads, options.dtype) {
            Ok(tensors) => {
                for tensor in tensors {
                    write(&mut to, &tensor).map_err(written)?;
                }
            }
            Err(problem) => problems.push(format!("`{}` {problem}", layer.path)),
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

/// Puts llama.cpp's idea of the model's paths in place of the file's.
fn name(tensors: &mut Tensors, dir: &AdapterDir) -> Result<Naming, String> {
    let paths = tensors.paths();
    // There is no model: any end of a path that is one of llama.cpp's may be meant.
    let ends = paths.iter().flat_map(|path| {
        let dots = path.match_indices('.').map(|(dot, _)| &path[dot + 1..]);
        dots.chain([path.as_str()])
    });
    let known = ends.flat_map(|end| [end.to_string(), join("model", end)]);
    let known: Vec<String> = known
        .filter(|path| names::to_gguf(path).is_some())
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
        (
            "target_parameters",
            file.target_parameters
                .as_ref()
                .is_some_and(|p| !p.is_empty()),
        ),
        ("ensure_weight_tying", file.ensure_weight_tying),
        ("init_lora_weights", file.init_lora_weights.changes_base()),
    ];
    let on = features.iter().filter(|(_, on)| *on);
    let mut problems: Vec<String> = on
        .map(|(key, _)| format!("`{key}` is set to a value that a GGUF adapter cannot hold"))
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

struct Pair {
    /// llama.cpp's name, without `.weight`.
    name: String,
    path: String,
    rank: usize,
    inputs: usize,
    outputs: usize,
    /// The keys of A and B in the file.
    keys: [String; 2],
}

/// The layers of the file, or all that is wrong with its tensors.
fn pairs(file: &Tensors) -> Result<Vec<Pair>, Vec<String>> {
    let mut problems = Vec::new();
    let mut parts: IndexMap<(&str, bool), [Option<&String>; 2]> = IndexMap::new();
    for (bare, key) in file.keys() {
        let part = keys::parse(bare).and_then(|parsed| match parsed.part {
            Part::A => Some(((parsed.path, parsed.of_lookup), 0)),
            Part::B => Some(((parsed.path, parsed.of_lookup), 1)),
            _ => None,
        });
        match part {
            Some((layer, part)) => parts.entry(layer).or_default()[part] = Some(key),
            None if is_base_of_embedding(bare) => {}
            None => problems.push(format!(
                "`{}` is neither A nor B of a layer: a GGUF adapter holds no other tensors",
                shorten(bare)
            )),
        }
    }
    let mut layers: IndexMap<String, Pair> = IndexMap::new();
    for ((path, tokens), keys) in parts {
        let short = shorten(path);
        let name = names::to_gguf(path).filter(|name| (name == names::TOKENS) == tokens);
        let (Some(name), [Some(a), Some(b)]) = (name.clone(), keys) else {
            problems.push(match name {
                None => format!("`{short}` has no known name in llama.cpp"),
                Some(_) => format!("`{short}` lacks A or B"),
            });
            continue;
        };
        let (of_a, of_b) = (&file.tensors()[a], &file.tensors()[b]);
        match (&of_a.shape[..], &of_b.shape[..]) {
            (&[rank, inputs], &[outputs, same])
                if rank == same && [rank, inputs, outputs].iter().all(|n| *n > 0) =>
            {
                let layer = Pair {
                    name: name.clone(),
                    path: path.into(),
                    rank,
                    inputs,
                    outputs,
                    keys: [a.clone(), b.clone()],
                };
                if layers.insert(name, layer).is_some() {
                    problems.push(format!("`{short}` has the same name as another layer"));
                }
            }
            (a, b) => problems.push(format!(
                "`{short}` has A of shape {a:?} and B of {b:?}, which do not fit"
            )),
        }
    }
    if layers.is_empty() && problems.is_empty() {
        problems.push("holds no layer".into());
    }
    match problems.is_empty() {
        true => Ok(layers.into_values().collect()),
        false => Err(problems),
    }
}

impl Pair {
    /// Names, rows and columns of both tensors.
    fn tensors(&self) -> [(String, usize, usize); 2] {
        let name = |part| format!("{}.weight.{part}", self.name);
        let (rows, columns) = match self.name == names::TOKENS {
            true => (self.inputs, self.rank),
            false => (self.rank, self.inputs),
        };
        [
            (name("lora_a"), rows, columns),
            (name("lora_b"), self.outputs, self.rank),
        ]
    }

    fn values(
        &self,
        file: &Tensors,
        factor: f64,
        heads: Option<usize>,
        dtype: DType,
    ) -> Result<[Tensor; 2], String> {
        let load = |key: &str| {
            let tensor = file.tensor(key).map_err(|error| error.to_string())?;
            match tensor.dtype().is_float() {
                true => Ok(tensor),
                false => Err(format!("is {:?}: it must hold floats", tensor.dtype())),
            }
        };
        let [mut a, mut b] = [load(&self.keys[0])?, load(&self.keys[1])?];
        let mut convert = || -> candle_core::Result<[Tensor; 2]> {
            if self.name == names::TOKENS {
                a = a.t()?.contiguous()?;
            }
            if factor != 1.0 {
                b = (b.to_dtype(DType::F64)? * factor)?;
            }
            Ok([a.to_dtype(dtype)?, b.to_dtype(dtype)?])
        };
        let [a, mut b] = convert().map_err(|error| error.to_string())?;
        for tensor in [&a, &b] {
            if !ops::is_finite(tensor).map_err(|error| error.to_string())? {
                return Err(format!("holds values that are not finite in {dtype:?}"));
            }
        }
        if let Some(heads) = heads {
            b = names::reorder(&b, heads, true)?;
        }
        Ok([a, b])
    }
}

/// Everything before the data.
fn header<'a>(
    arch: &str,
    alpha: f32,
    file: &AdapterConfig,
    layers: impl Iterator<Item = &'a Pair>,
    kind: DataType,
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
    let tensors: Vec<_> = layers.flat_map(Pair::tensors).collect();

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
    for (name, rows, columns) in tensors {
        let (rows, columns) = (rows as u64, columns as u64);
        text(&mut bytes, &name);
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(columns.to_le_bytes());
        bytes.extend(rows.to_le_bytes());
        bytes.extend(kind.number().to_le_bytes());
        bytes.extend(start.to_le_bytes());
        let size = kind.row_size(columns).and_then(|row| row.checked_mul(rows));
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

/// PEFT writes the base weight of an adapted embedding or head beside the adapter.
fn is_base_of_embedding(key: &str) -> bool {
    let module = keys::path_of_base_weight(key);
    module.is_some_and(|module| {
        ["embed_tokens", "lm_head"]
            .iter()
            .any(|name| is_or_ends_with(module, name))
    })
}
