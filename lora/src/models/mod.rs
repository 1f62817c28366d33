//! Architectures, and how to create them: with random weights, from a safetensors file, from a
//! directory as transformers writes it, or from the Hugging Face hub (feature `hub`).
//!
//! [`create`] makes a variant with a name, [`build`] any configuration. [`auto`] reads a directory with
//! a `config.json`, which says what the model is.
//!
//! Each architecture is written as any user of this crate would write it: with
//! [`#[derive(LoraModel)]`](derive@crate::LoraModel) and
//! [`#[lora::forward]`](macro@crate::forward).
//!
//! ```
//! use lora::models::{self, Options, Weights, convnext::ConvNext};
//!
//! let options = Options::new().num_classes(10);
//! let created = models::create::<ConvNext>("convnext_atto", Weights::Random(0), &options)?;
//! assert_eq!(created.config.num_classes, 10);
//! assert!(models::list().contains(&"convnext_tiny"));
//! # Ok::<(), lora::Error>(())
//! ```

mod auto;
pub mod convnext;
mod create;
pub mod decoder;
pub mod encoder;
pub mod generate;
#[cfg(feature = "hub")]
mod hub;
mod keys;
mod labels;
mod loader;
mod names;
mod parts;
mod random;
mod rank;
mod shapes;
mod timm;
pub mod vit;

pub use crate::gguf::is_gguf;
pub use auto::{Auto, auto};
pub use create::{build, create};
#[cfg(feature = "hub")]
pub use hub::Hub;
pub use rank::check_rank;
pub use shapes::parameter_shapes;

use crate::LoraModel;
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use std::fmt::Debug;
use std::path::PathBuf;

/// The names of all variants of all architectures.
pub fn list() -> Vec<&'static str> {
    let convnext = convnext::ConvNext::variants().iter();
    let vit = vit::Vit::variants().iter();
    let convnext = convnext.map(|variant| variant.name);
    convnext.chain(vit.map(|variant| variant.name)).collect()
}

/// An architecture whose variants have names. Implement it for a model of your own to create it
/// with [`create`] and [`build`].
pub trait Architecture: LoraModel {
    /// What distinguishes the variants.
    type Config: Clone + Debug + 'static;

    /// Path of the layer that tells the classes apart; its weight is (classes, features).
    const CLASSIFIER: &'static str;

    /// The module that holds all but the head, if there is one. A file in which no name begins with it
    /// is taken for one of the model without its head, which leaves the module's name out.
    const BODY: Option<&'static str> = None;

    /// The variants that have a name.
    fn variants() -> &'static [Variant<Self::Config>];

    /// The configuration with the options' settings in place of its own.
    fn with_options(config: &Self::Config, options: &Options) -> Self::Config;

    /// Makes the model with the weights of `vb`. The hint that the model gives for each weight is
    /// the initial value of a fresh one.
    ///
    /// # Errors
    /// If the configuration is not valid, or a weight is missing or has another shape.
    fn build(config: &Self::Config, vb: VarBuilder) -> candle_core::Result<Self>;

    /// As [`build`](Self::build), with each matrix quantised to this type as soon as it is read:
    /// [`Options::quantize`].
    ///
    /// # Errors
    /// Those of `build`; for a model that cannot do this, as is the default, always.
    fn build_quantised(
        config: &Self::Config,
        vb: VarBuilder,
        dtype: GgmlDType,
    ) -> candle_core::Result<Self> {
        let _ = (config, vb);
        candle_core::bail!(
            "`quantize` is {dtype:?}: only a decoder is quantised as it is read; convert this model with \
             LoraConfig::quantize"
        )
    }

    /// The modules that get fresh parameters where a file lacks one of the module's, or holds it in
    /// another shape. By default it is the classifier, if the options say how many classes there are.
    fn heads(config: &Self::Config, options: &Options) -> Vec<&'static str> {
        let _ = config;
        options
            .num_classes
            .map(|_| Self::CLASSIFIER)
            .into_iter()
            .collect()
    }

    /// Other names that a file may have for a parameter.
    fn other_names(config: &Self::Config, name: &str) -> Vec<String> {
        let _ = (config, name);
        Vec::new()
    }

    /// What a tensor of a file is for which the model has no parameter.
    fn extra(config: &Self::Config, name: &str) -> Extra {
        let _ = (config, name);
        Extra::Unknown
    }
}

/// What a tensor of a file is for which the model has no parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extra {
    /// Something that the model lacks: an error.
    Unknown,
    /// Something that the model computes by itself.
    Harmless,
    /// Another name of this parameter: an error only if its values differ.
    CopyOf(&'static str),
}

/// A variant of an architecture that has a name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Variant<C> {
    /// Its name, for example `convnext_tiny`.
    pub name: &'static str,
    /// Its configuration.
    pub config: C,
    tags: &'static str,
}

impl<C> Variant<C> {
    /// A variant and the tags of its pretrained weights: those in `timm/NAME.TAG` on the hub. The
    /// tags are separated by spaces, the default one first.
    pub const fn new(name: &'static str, config: C, tags: &'static str) -> Self {
        Self { name, config, tags }
    }

    /// The tags of its pretrained weights, the default one first.
    pub fn tags(&self) -> impl Iterator<Item = &'static str> + use<C> {
        self.tags.split_whitespace()
    }
}

/// Where a model's weights come from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Weights {
    /// Fresh ones, drawn from this seed. They are the same on every device.
    Random(u64),
    /// A safetensors file with exactly the model's parameters, the index of several such files
    /// (`model.safetensors.index.json`), or a directory that holds either.
    File(PathBuf),
    /// timm's pretrained ones, from the Hugging Face hub or its local cache.
    #[cfg(feature = "hub")]
    Hub(Hub),
    /// Zeros that take no memory, to count and list a model's parameters.
    Placeholder,
}

/// What a language model computes of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Task {
    /// Hidden states, of which sentence embeddings are made.
    Features,
    /// A class for each text, or a number.
    SequenceClassification,
    /// A class for each token.
    TokenClassification,
    /// The tokens that a mask hides.
    MaskedLm,
}

/// How a model is created, beside its name and weights.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Number of classes in place of the variant's, or of the file's.
    pub num_classes: Option<usize>,
    /// Channels of the image in place of the variant's.
    pub in_chans: Option<usize>,
    /// The task in place of the file's, of an encoder.
    pub task: Option<Task>,
    /// Modules that get fresh parameters, whatever the file holds for them.
    pub fresh: Vec<String>,
    /// The seed of the parameters that are fresh beside those of a file.
    pub seed: u64,
    /// The weights' dtype.
    pub dtype: DType,
    /// The weights' device.
    pub device: Device,
    /// The type of GGML's blocks that the model's matrices are held in, of a decoder.
    pub quantize: Option<GgmlDType>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            num_classes: None,
            in_chans: None,
            task: None,
            fresh: Vec::new(),
            seed: 0,
            dtype: DType::F32,
            device: Device::Cpu,
            quantize: None,
        }
    }
}

impl Options {
    /// The variant as it is, in f32 on the CPU.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`num_classes`](Self::num_classes). If the file's classifier has another number of
    /// classes or is missing, the model's classifier is fresh. With 0 the model has none.
    pub fn num_classes(mut self, num_classes: usize) -> Self {
        self.num_classes = Some(num_classes);
        self
    }

    /// Sets [`in_chans`](Self::in_chans).
    pub fn in_chans(mut self, in_chans: usize) -> Self {
        self.in_chans = Some(in_chans);
        self
    }

    /// Sets [`task`](Self::task). Parameters of the task's head are fresh where the file lacks one.
    pub fn task(mut self, task: Task) -> Self {
        self.task = Some(task);
        self
    }

    /// Sets [`fresh`](Self::fresh): paths of modules, for example `head`.
    pub fn fresh<S: Into<String>>(mut self, modules: impl IntoIterator<Item = S>) -> Self {
        self.fresh = modules.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`seed`](Self::seed).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets [`dtype`](Self::dtype).
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Sets [`quantize`](Self::quantize): each matrix of a decoder, the embedding and the head too, is
    /// quantised to this type as soon as it is read or made, so that the model is never held in full
    /// precision. The model computes in f32. [`LoraConfig::quantize`](crate::LoraConfig::quantize)
    /// quantises the linear layers of any model, when it is converted.
    ///
    /// ```
    /// use candle_core::quantized::GgmlDType;
    /// use lora::models::decoder::{Decoder, DecoderConfig};
    /// use lora::models::{self, Options, Weights};
    /// use lora::{LoraConfig, LoraModel, LoraModule};
    ///
    /// let config: DecoderConfig = serde_json::from_str(
    ///     r#"{"model_type": "llama", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64,
    ///         "num_attention_heads": 4, "num_hidden_layers": 2}"#,
    /// ).unwrap();
    /// let options = Options::new().quantize(GgmlDType::Q4_0);
    /// let base = models::build::<Decoder>(&config, Weights::Random(0), &options)?.model;
    /// let model = base.to_lora(&LoraConfig::new(2))?;
    /// assert!(model.summary().rows.iter().any(|row| row.quantised == Some(GgmlDType::Q4_0)));
    /// # Ok::<(), lora::Error>(())
    /// ```
    pub fn quantize(mut self, dtype: GgmlDType) -> Self {
        self.quantize = Some(dtype);
        self
    }

    /// Sets [`device`](Self::device).
    pub fn device(mut self, device: &Device) -> Self {
        self.device = device.clone();
        self
    }
}

/// A model, and where its parameters came from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Created<M: Architecture> {
    /// The model.
    pub model: M,
    /// Its configuration.
    pub config: M::Config,
    /// The parameters that the weights did not hold. They have initial values and must be trained.
    /// With [`Weights::Random`] these are all parameters.
    pub fresh: Vec<String>,
    /// The tensors of the weights that the model does not need: see [`Extra`].
    pub ignored: Vec<String>,
}
