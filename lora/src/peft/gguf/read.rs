//! From GGUF to a directory.

use super::GgufOptions;
use crate::adapter::Part;
use crate::error::shorten;
use crate::gguf::archs::{self, Arch};
use crate::gguf::header::{self, Field, Header, Info, Wanted};
use crate::gguf::{names, rows, types};
use crate::peft::{AdapterConfig, keys, replace};
use crate::{Error, Result, Targets, ops};
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use indexmap::IndexMap;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

const ADAPTER: Wanted = Wanted {
    keeps: |key| key.starts_with("adapter."),
    kinds: types::holds_adapters,
};

/// Writes the adapter of a GGUF file as a directory of PEFT's.
///
/// The directory loads into models whose layers have their names in transformers
/// (`model.layers.0.self_attn.q_proj`), with a module for each expert. Where llama.cpp has rows in
/// another order, the options [`heads`](GgufOptions::heads) and [`kv_heads`](GgufOptions::kv_heads)
/// are needed. F32, F16 and BF16 tensors keep their dtype, Q8_0 becomes F32.
///
/// # Errors
/// If the file is no valid GGUF file, no LoRA adapter, or an activated LoRA; if its architecture is
/// not known, or not that of the options; if it holds a tensor that is not A or B of a known layer,
/// or only one of the two; if it has one module's outputs in several tensors (`internlm2`'s
/// queries, keys and values); if values are not finite; if the directory cannot be written. Everything
/// wrong with the tensors is listed, and the directory stays as it was.
pub fn gguf_to_adapter(
    gguf: impl AsRef<Path>,
    dir: impl AsRef<Path>,
    options: &GgufOptions,
) -> Result<()> {
    let (path, dir) = (gguf.as_ref(), dir.as_ref());
    let failed = |problems| Error::File {
        path: path.into(),
        problems,
    };
    let file = File::open(path).map_err(|error| Error::file(path, error))?;
    let length = file.metadata().map_err(|error| Error::file(path, error))?;
    let length = length.len();
    let header =
        header::read(&file, length, &ADAPTER).map_err(|problem| Error::file(path, problem))?;
    let meaning = Meaning::of(&header, options).map_err(failed)?;
    let layers = pairs(&header, meaning.arch).map_err(failed)?;

    let mut problems = Vec::new();
    let mut tensors = Vec::new();
    for layer in &layers {
        match layer.read(&file, &meaning, options) {
            Ok(pair) => tensors.extend(pair),
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Err(failed(problems));
    }
    let config = meaning.config(&layers).to_json()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(tensors, Some(metadata));
    replace::write(
        dir,
        &config,
        &bytes.map_err(|error| Error::file(path, error))?,
    )
}

/// What the fields of the file say.
struct Meaning {
    arch: &'static Arch,
    /// `None` for a scaling of 1.
    alpha: Option<f64>,
    base: Option<String>,
}

impl Meaning {
    fn of(header: &Header, options: &GgufOptions) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let text = |key: &str| match header.fields.get(key) {
            Some(Field::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        for (key, wanted) in [("general.type", "adapter"), ("adapter.type", "lora")] {
            let found = text(key).unwrap_or("absent");
            if found != wanted {
                let found = shorten(found);
                problems.push(format!(
                    "is no LoRA adapter: `{key}` is {found}, not {wanted}"
                ));
            }
        }
        let name = text("general.architecture").unwrap_or_default();
        let arch = archs::named(name);
        if arch.is_none() {
            let (name, known) = (shorten(name), archs::known());
            problems.push(format!("is for the architecture \"{name}\": {known}"));
        } else if options.arch.as_deref().is_some_and(|wanted| wanted != name) {
            problems.push(format!(
                "is for the architecture {name}, not that of the options"
            ));
        }
        if header
            .fields
            .contains_key("adapter.alora.invocation_tokens")
        {
            problems.push("is an activated LoRA, which is not supported".into());
        }
        let alpha = match header.fields.get("adapter.lora.alpha") {
            None => Some(0.0),
            Some(Field::Float(alpha)) if alpha.is_finite() => Some(*alpha),
            Some(_) => None,
        };
        let Some(alpha) = alpha else {
            problems.push("has an `adapter.lora.alpha` that is no finite number".into());
            return Err(problems);
        };
        let Some(arch) = arch.filter(|_| problems.is_empty()) else {
            return Err(problems);
        };
        Ok(Self {
            arch,
            alpha: (alpha != 0.0).then_some(alpha),
            base: text("general.base_model.0.name").map(Into::into),
        })
    }

    fn config(&self, layers: &[Pair]) -> AdapterConfig {
        let paths = || {
            layers
                .iter()
                .flat_map(|layer| layer.paths().map(move |path| (path, layer)))
        };
        let mut counts: IndexMap<usize, usize> = IndexMap::new();
        for (_, layer) in paths() {
            *counts.entry(layer.rank()).or_default() += 1;
        }
        counts.sort_keys();
        let most = counts.iter().max_by_key(|(_, count)| **count);
        let mut config = AdapterConfig::new();
        config.r = most.map_or(1, |(rank, _)| *rank);
        // A scaling of 1 is an alpha that is each layer's rank.
        config.lora_alpha = self.alpha.unwrap_or(config.r as f64);
        for (path, layer) in paths().filter(|(_, layer)| layer.rank() != config.r) {
            let key = format!("^{}$", fancy_regex::escape(&path));
            if self.alpha.is_none() {
                config
                    .alpha_pattern
                    .insert(key.clone(), layer.rank() as f64);
            }
            config.rank_pattern.insert(key, layer.rank());
        }
        config.rank_pattern.sort_keys();
        config.alpha_pattern.sort_keys();
        config.base_model_name_or_path = self.base.clone();
        let mut paths: Vec<String> = paths().map(|(path, _)| path).collect();
        paths.sort();
        config.target_modules = Some(Targets::Names(paths));
        config
    }
}

/// Both matrices of a layer.
struct Pair<'a> {
    /// llama.cpp's name, without `.weight`.
    name: &'a str,
    /// The module's path, with `*` for the number of an expert.
    path: String,
    a: &'a Info,
    b: &'a Info,
}

/// The layers of the file, or all that is wrong with its tensors.
fn pairs<'a>(header: &'a Header, arch: &Arch) -> Result<Vec<Pair<'a>>, Vec<String>> {
    let mut problems = Vec::new();
    let mut parts: IndexMap<&str, [Option<&Info>; 2]> = IndexMap::new();
    for (key, info) in &header.tensors {
        let a = key.strip_suffix(".weight.lora_a").map(|name| (name, 0));
        match a.or_else(|| Some((key.strip_suffix(".weight.lora_b")?, 1))) {
            Some((name, part)) => parts.entry(name).or_default()[part] = Some(info),
            None => problems.push(format!(
                "`{}` is neither A nor B of a layer: no other tensors are read",
                shorten(key)
            )),
        }
    }
    let mut layers: Vec<Pair> = Vec::new();
    for (name, parts) in parts {
        let short = shorten(name);
        match (names::from_gguf(arch, name), parts) {
            (None, _) => problems.push(format!("`{short}` is no known layer")),
            (_, [None, _]) => problems.push(format!("`{short}` has B, but no A")),
            (_, [_, None]) => problems.push(format!("`{short}` has A, but no B")),
            (Some(path), [Some(a), Some(b)]) => {
                let layer = Pair { name, path, a, b };
                // The embedding's A is stored transposed.
                let rank = if layer.is_tokens() { a.columns } else { a.rows };
                if rank != b.columns || a.matrices != b.matrices {
                    problems.push(format!(
                        "`{short}` has rank {rank} in A, {} in B, of {} and {} experts",
                        b.columns, a.matrices, b.matrices
                    ));
                } else if names::to_gguf(arch, &layer.path).len() > 1 {
                    problems.push(format!(
                        "`{short}` is a part of `{}`, which has one adapter: parts cannot be joined",
                        layer.path
                    ));
                } else {
                    layers.push(layer);
                }
            }
        }
    }
    if layers.is_empty() && problems.is_empty() {
        problems.push("holds no layer".into());
    }
    layers.sort_by(|a, b| a.path.cmp(&b.path));
    match problems.is_empty() {
        true => Ok(layers),
        false => Err(problems),
    }
}

impl Pair<'_> {
    fn is_tokens(&self) -> bool {
        self.name == names::TOKENS
    }

    fn rank(&self) -> usize {
        self.b.columns
    }

    /// The paths of its modules: one, or one for each expert.
    fn paths(&self) -> impl Iterator<Item = String> {
        let numbers = 0..self.a.matrices;
        numbers.map(|number| self.path.replace('*', &number.to_string()))
    }

    /// All tensors with their keys in PEFT's file.
    fn read(
        &self,
        file: &File,
        meaning: &Meaning,
        options: &GgufOptions,
    ) -> Result<Vec<(String, Tensor)>, String> {
        let order = rows::order(meaning.arch, self.name, self.b.rows, options.of_rows())?;
        let named = |problem: String| format!("`{}` {problem}", self.name);
        let (a, b) = (tensor(file, self.a), tensor(file, self.b));
        let (a, b) = (a.map_err(named)?, b.map_err(named)?);
        let mut tensors = Vec::new();
        for (number, path) in self.paths().enumerate() {
            let one = || -> candle_core::Result<[Tensor; 2]> {
                let (mut a, mut b) = (a.get(number)?, b.get(number)?);
                if let Some(order) = &order {
                    b = rows::select(&b, rows::inverse(order))?;
                }
                if self.is_tokens() {
                    a = a.t()?;
                }
                Ok([a.contiguous()?, b.contiguous()?])
            };
            let pair = one().map_err(|error| named(error.to_string()))?;
            for (part, tensor) in [Part::A, Part::B].into_iter().zip(pair) {
                let key = keys::part(&path, part, self.is_tokens());
                tensors.push((keys::with_prefix(&key), tensor));
            }
        }
        Ok(tensors)
    }
}

/// Reads a tensor (matrices, rows, columns).
fn tensor(file: &File, info: &Info) -> Result<Tensor, String> {
    let mut bytes = Vec::new();
    let size = usize::try_from(info.size).map_err(|error| error.to_string())?;
    let reserved = bytes.try_reserve_exact(size);
    reserved.map_err(|error| error.to_string())?;
    let mut file = file;
    let sought = file.seek(SeekFrom::Start(info.start));
    sought.map_err(|error| error.to_string())?;
    let read = file.take(info.size).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    if bytes.len() != size {
        return Err("became shorter while it was read".into());
    }
    let shape = (info.matrices, info.rows, info.columns);
    let dims = [shape.0, shape.1, shape.2];
    let raw = |dtype| Tensor::from_raw_buffer(&bytes, dtype, &dims, &Device::Cpu);
    let tensor = match info.kind {
        GgmlDType::F32 => raw(DType::F32),
        GgmlDType::F16 => raw(DType::F16),
        GgmlDType::BF16 => raw(DType::BF16),
        _ => q8(&bytes, shape),
    };
    let tensor = tensor.map_err(|error| format!("cannot be read: {error}"))?;
    match ops::is_finite(&tensor) {
        Ok(true) => Ok(tensor),
        Ok(false) => Err("holds values that are not finite".into()),
        Err(error) => Err(format!("cannot be checked: {error}")),
    }
}

/// Decodes blocks of a scale and 32 whole numbers.
fn q8(bytes: &[u8], shape: (usize, usize, usize)) -> candle_core::Result<Tensor> {
    let blocks = bytes.chunks_exact(34);
    let scales: Vec<u8> = blocks
        .clone()
        .flat_map(|block| [block[0], block[1]])
        .collect();
    let count = blocks.len();
    let scales = Tensor::from_raw_buffer(&scales, DType::F16, &[count, 1], &Device::Cpu)?;
    let numbers = blocks.flat_map(|block| &block[2..]);
    let numbers: Vec<f32> = numbers.map(|byte| f32::from(*byte as i8)).collect();
    let numbers = Tensor::from_vec(numbers, (count, 32), &Device::Cpu)?;
    numbers
        .broadcast_mul(&scales.to_dtype(DType::F32)?)?
        .reshape(shape)
}
