//! Decoders from GGUF files, as llama.cpp's tools write them.

mod config;
mod names;

use super::Decoder;
use super::source::Source;
use crate::error::{shorten, warn};
use crate::gguf::rows::{self, Heads};
use crate::gguf::{GgufFile, types};
use crate::models::{Created, Options, parameter_shapes};
use crate::{Error, Result};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Shape, Tensor, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use indexmap::IndexMap;
use names::Names;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// Reads a decoder from a GGUF file: of the architectures `llama` (which Mistral has, too), `qwen2`,
/// `qwen3`, `gemma`, `gemma2`, `gemma3`, `phi3`, `smollm3`, `olmo2` and `granite`.
///
/// Weights stay in the blocks of the file, and no copy in full precision is held; those in F32 are
/// tensors. Paths, the order of rows and the weights of norms are those of transformers, so that PEFT's
/// adapters for the model fit. The first of several parts, `..-00001-of-00003.gguf`, stands for all.
/// A warning names settings of the file that have no effect here.
///
/// The model computes in f32 on the device of the options. A file without quantised weights can be read
/// in another dtype, too.
///
/// ```no_run
/// use lora::models::{Options, decoder};
/// use lora::{LoraConfig, LoraModel};
///
/// let created = decoder::from_gguf("SmolLM2-135M-Instruct.Q4_1.gguf", &Options::new())?;
/// let model = created.model.to_lora(&LoraConfig::new(8))?;
/// # Ok::<(), lora::Error>(())
/// ```
///
/// # Errors
/// [`Error::File`] if the file is not valid, is of another architecture or has settings that are not
/// supported. [`Error::Weights`] lists the weights that the file lacks, those of another shape, and
/// tensors that the model lacks. [`Error::Config`] if the options ask for another dtype than f32 and the
/// file holds quantised weights, or for another number of classes.
pub fn from_gguf(path: impl AsRef<Path>, options: &Options) -> Result<Created<Decoder>> {
    let file = GgufFile::open(path.as_ref())?;
    let (names, config) = config::read(&file)?;
    for note in &config.without_effect {
        warn(&format!("{}: {note}", file.path().display()));
    }
    refuse(options)?;
    let expected = parameter_shapes::<Decoder>(&config)?;
    let in_file = check(&file, &names, expected)?;
    refuse_dtype(&file, options.dtype)?;
    let weights = Arc::new(Weights {
        heads: Heads {
            queries: Some(config.num_attention_heads),
            keys: Some(config.num_key_value_heads),
        },
        file,
        names,
        in_file,
        // The weight of a norm is the file's less one.
        has_one_more: config.norms_add_one,
        options: options.clone(),
    });
    let backend = Backend(weights.clone());
    let vb = VarBuilder::from_backend(Box::new(backend), options.dtype, options.device.clone());
    let blocks = |name: &str| weights.blocks(name);
    let model = Decoder::of(&config, Source::with_blocks(vb, &blocks))?;
    Ok(Created {
        model,
        config,
        fresh: Vec::new(),
        ignored: Vec::new(),
    })
}

/// Refuses options that a decoder in a GGUF file cannot follow.
fn refuse(options: &Options) -> Result<()> {
    let mut problems = Vec::new();
    if options.num_classes.is_some() {
        problems.push("`num_classes` is set: a GGUF file says how many tokens there are".into());
    }
    if !options.fresh.is_empty() {
        problems.push("`fresh` is set: all parameters come from a GGUF file".into());
    }
    if options.quantize.is_some() {
        problems.push("`quantize` is set: a GGUF file says how its weights are quantised".into());
    }
    if options.task.is_some() {
        problems.push("`task` is set: a decoder predicts the next token".into());
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::Config(problems)),
    }
}

fn refuse_dtype(file: &GgufFile, dtype: DType) -> Result<()> {
    let mut infos = file
        .names()
        .filter_map(|name| Some((name, file.info(name)?)));
    let quantised = infos.find(|(_, info)| !is_float(info.kind));
    match quantised {
        Some((name, info)) if dtype != DType::F32 => Err(Error::Config(vec![format!(
            "`dtype` is {dtype:?}: with quantised weights, such as `{name}` in {}, a model computes in F32",
            types::name(info.kind)
        )])),
        _ => Ok(()),
    }
}

fn is_float(kind: GgmlDType) -> bool {
    matches!(kind, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16)
}

/// The file's name of each parameter, or all that does not fit.
fn check(
    file: &GgufFile,
    names: &Names,
    expected: IndexMap<String, Shape>,
) -> Result<HashMap<String, String>> {
    let (mut problems, mut in_file) = (Vec::new(), HashMap::new());
    for (name, shape) in expected {
        let Some(known) = names.of(&name) else {
            problems.push(format!("`{name}` has no name in llama.cpp"));
            continue;
        };
        let fits = |rows: usize, columns: usize| match *shape.dims() {
            [count] => (rows, columns) == (1, count),
            _ => shape.dims() == [rows, columns],
        };
        match file.info(&known) {
            None => problems.push(format!("`{known}` {:?} is missing", shape.dims())),
            Some(info) if !fits(info.rows, info.columns) => problems.push(format!(
                "`{known}` is {:?}, the model's is {:?}",
                [info.rows, info.columns],
                shape.dims()
            )),
            Some(_) => {}
        }
        in_file.insert(name, known);
    }
    let used: HashSet<&str> = in_file.values().map(String::as_str).collect();
    let extra = file
        .names()
        .filter(|name| !used.contains(name) && !config::TABLES.contains(name));
    problems.extend(extra.map(|name| format!("`{}` is not of this model", shorten(name))));
    if problems.is_empty() {
        return Ok(in_file);
    }
    problems.push(format!("the file is {}", file.path().display()));
    Err(Error::Weights(problems))
}

/// The weights of a file under the names of transformers.
struct Weights {
    file: GgufFile,
    names: Names,
    /// The file's name of each parameter.
    in_file: HashMap<String, String>,
    heads: Heads,
    has_one_more: bool,
    options: Options,
}

impl Weights {
    fn in_file(&self, name: &str) -> candle_core::Result<&str> {
        match self.in_file.get(name) {
            Some(name) => Ok(name),
            None => bail!("{} has no `{name}`", self.file.path().display()),
        }
    }

    /// Where each of the parameter's rows lies in the file, unless in the same place.
    fn order(&self, known: &str, count: usize) -> candle_core::Result<Option<Vec<u32>>> {
        let module = known.rsplit_once('.').map_or(known, |(module, _)| module);
        match rows::order(self.names.arch(), module, count, self.heads) {
            Ok(order) => Ok(order.map(|order| rows::inverse(&order))),
            Err(problem) => bail!("{}: {problem}", self.file.path().display()),
        }
    }

    /// The blocks of a weight, unless the weight is a tensor of the model's dtype.
    fn blocks(&self, name: &str) -> candle_core::Result<Option<Arc<QTensor>>> {
        let known = self.in_file(name)?;
        let info = self.file.info(known);
        let is_tensor = |kind| kind == GgmlDType::F32 || self.options.dtype != DType::F32;
        let Some(info) = info.filter(|info| !is_tensor(info.kind)) else {
            return Ok(None);
        };
        let order = self.order(known, info.rows)?;
        let device = &self.options.device;
        let blocks = self.file.blocks(known, order.as_deref(), device)?;
        Ok(Some(Arc::new(blocks)))
    }

    fn tensor(&self, name: &str) -> candle_core::Result<Tensor> {
        let known = self.in_file(name)?;
        let mut values = self.file.values(known)?;
        if values.dim(0)? == 1 {
            values = values.squeeze(0)?;
        }
        if let Some(order) = self.order(known, values.dim(0)?)? {
            values = rows::select(&values, order)?;
        }
        if self.has_one_more && names::is_of_norm(name) {
            values = (values - 1.0)?;
        }
        Ok(values)
    }
}

/// The tensors among the weights.
struct Backend(Arc<Weights>);

impl SimpleBackend for Backend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.get_unchecked(name, dtype, device)?.reshape(shape)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let values = self.0.tensor(name)?;
        values.to_dtype(dtype)?.to_device(device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.in_file.contains_key(name)
    }
}
