//! Decoders from GGUF files, as llama.cpp's tools write them.

use super::Decoder;
use super::config::{Biases, DecoderConfig};
use super::source::Source;
use crate::error::{shorten, warn};
use crate::gguf::{GgufFile, Weights, config, types};
use crate::models::{Created, Options, parameter_shapes};
use crate::{Error, Result};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use indexmap::IndexMap;
use std::path::Path;
use std::sync::Arc;

/// Reads a decoder from a GGUF file: of the architectures `llama` (which Mistral has, too), `qwen2`,
/// `qwen3`, `qwen3moe`, `gemma`, `gemma2`, `gemma3`, `phi3`, `smollm3`, `olmo2` and `granite`. A `llama` with
/// experts is a Mixtral.
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
    let (weights, family) = Weights::open_whole(path.as_ref())?;
    let config = read_config(&weights.file, config::read(&weights.file, family)?)?;
    for note in &config.without_effect {
        warn(&format!("{}: {note}", weights.file.path().display()));
    }
    refuse(options)?;
    check(&weights, parameter_shapes::<Decoder>(&config)?)?;
    refuse_dtype(&weights.file, options.dtype)?;
    let backend = Arc::new(Backend {
        weights,
        options: options.clone(),
    });
    let boxed = Box::new(Shared(backend.clone()));
    let vb = VarBuilder::from_backend(boxed, options.dtype, options.device.clone());
    let blocks = |name: &str| backend.blocks(name);
    let model = Decoder::of(&config, Source::with_blocks(vb, &blocks))?;
    Ok(Created {
        model,
        config,
        fresh: Vec::new(),
        ignored: Vec::new(),
    })
}

/// The configuration in the metadata.
fn read_config(file: &GgufFile, read: config::Config) -> Result<DecoderConfig> {
    let mut config = DecoderConfig::parse(&read.json).map_err(|problems| Error::File {
        path: file.path().into(),
        problems,
    })?;
    let has = |name: &str| file.info(&format!("blk.0.{name}.bias")).is_some();
    config.biases = Biases {
        qkv: has("attn_q") || has("attn_qkv"),
        output: has("attn_output"),
        mlp: has("ffn_down"),
    };
    config.without_effect.extend(read.without_effect);
    Ok(config)
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
    let quantised = infos.find(|(_, info)| !types::is_float(info.kind));
    match quantised {
        Some((name, info)) if dtype != DType::F32 => Err(Error::Config(vec![format!(
            "`dtype` is {dtype:?}: with quantised weights, such as `{name}` in {}, a model computes in F32",
            types::name(info.kind)
        )])),
        _ => Ok(()),
    }
}

/// Lists all that does not fit the model.
fn check(weights: &Weights, expected: IndexMap<String, Shape>) -> Result<()> {
    let mut problems = Vec::new();
    for (name, shape) in &expected {
        let in_file = || weights.in_file(name).unwrap_or_else(|| name.clone());
        match weights.place(name) {
            None => problems.push(format!("`{}` {:?} is missing", in_file(), shape.dims())),
            Some(place) if place.shape != shape.dims() => problems.push(format!(
                "`{}` is {:?}, the model's is {:?}",
                in_file(),
                place.shape,
                shape.dims()
            )),
            Some(_) => {}
        }
    }
    let extra = weights.names().filter(|name| !expected.contains_key(*name));
    let extra = extra.filter_map(|name| Some(weights.place(name)?.parts.first()?.name.as_str()));
    let strangers = weights.strangers.iter().map(String::as_str);
    let strangers = strangers.filter(|name| !Weights::is_table(name));
    for name in extra.chain(strangers) {
        let problem = format!("`{}` is not of this model", shorten(name));
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    problems.push(format!("the file is {}", weights.file.path().display()));
    Err(Error::Weights(problems))
}

/// The weights of a file: blocks, and tensors of the model's dtype.
struct Backend {
    weights: Weights,
    options: Options,
}

impl Backend {
    /// The blocks of a weight, unless the weight is a tensor of the model's dtype.
    fn blocks(&self, name: &str) -> candle_core::Result<Option<Arc<QTensor>>> {
        let is_tensor = |kind| kind == GgmlDType::F32 || self.options.dtype != DType::F32;
        match self.weights.kind(name) {
            Some(kind) if !is_tensor(kind) => {
                let blocks = self.weights.blocks(name, &self.options.device)?;
                Ok(blocks.map(Arc::new))
            }
            _ => Ok(None),
        }
    }
}

/// The tensors among the weights.
struct Shared(Arc<Backend>);

impl SimpleBackend for Shared {
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
        let values = self.0.weights.tensor(name)?;
        values.to_dtype(dtype)?.to_device(device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.weights.place(name).is_some()
    }
}
