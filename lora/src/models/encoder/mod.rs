//! Encoders: language models that read a text as a whole.
//!
//! One implementation for BERT, MiniLM and the sentence encoders made of them, RoBERTa, XLM-R,
//! CamemBERT, DistilBERT and ModernBERT: their differences are in [`EncoderConfig`]. Names and numbers
//! are those of Hugging Face's transformers, whose checkpoints load as they are, and PEFT's adapters
//! for them. See [`auto`](super::auto).

mod block;
mod config;
mod context;
mod embeddings;
mod head;
mod inputs;
mod modern;
mod names;
mod pooling;
mod sentences;
mod stack;

pub use config::{Dropouts, EncoderConfig, EncoderFamily, ModernBertConfig};
pub use inputs::Inputs;
pub use pooling::Pooling;

pub(super) use sentences::Sentences;

use super::parts::WEIGHT;
use super::{Architecture, Extra, Options, Task, Variant};
use crate::LoraModel;
use candle_core::{Result, Tensor, bail};
use candle_nn::{Embedding, VarBuilder};
use context::Context;
use head::Head;
use modern::Modern;
use stack::Stack;

/// A model that reads a text as a whole, with the head of its [`Task`].
///
/// `#[lora(rank)]` marks the queries' and values' layers of every layer (in ModernBERT `Wqkv`): PEFT's
/// default. Paths are the checkpoint's, such as `bert.encoder.layer.0.attention.self.query`; a model
/// without a head has no `bert.` in front, as in transformers.
/// [`LoraConfig::recompute`](crate::LoraConfig::recompute) takes the layers,
/// `bert.encoder.layer.0`: in training their inner values are computed anew in the backward pass.
///
/// The base model computes with candle's norms, which know no f64.
/// [`to_frozen`](LoraModel::to_frozen) gives the same model with this crate's layers.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lora::models::encoder::{Encoder, EncoderConfig, Inputs};
/// use lora::models::{self, Options, Task, Weights};
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// let config: EncoderConfig = serde_json::from_str(
///     r#"{"model_type": "bert", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64,
///         "num_attention_heads": 4, "num_hidden_layers": 2}"#,
/// ).unwrap();
/// let options = Options::new().task(Task::SequenceClassification).num_classes(3);
/// let created = models::build::<Encoder>(&config, Weights::Random(0), &options)?;
/// let config = LoraConfig::new(2).modules_to_save(["classifier"]);
/// let model = created.model.to_lora(&config)?;
///
/// // Two texts, the second shorter.
/// let ids = Tensor::new(&[[7u32, 3, 9, 1], [5, 2, 0, 0]], &Device::Cpu)?;
/// let mask = Tensor::new(&[[1u8, 1, 1, 1], [1, 1, 0, 0]], &Device::Cpu)?;
/// let inputs = Inputs::new(&ids).mask(&mask);
/// let logits = model.forward(&inputs, true)?;  // with dropout
/// assert_eq!(logits.dims(), [2, 3]);
/// let embeddings = model.embed(&inputs, false)?;
/// assert_eq!(embeddings.dims(), [2, 32]);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug, LoraModel)]
pub struct Encoder {
    #[lora(config)]
    config: EncoderConfig,
    #[lora(flatten)]
    proper: Proper,
    #[lora(flatten)]
    head: Head,
}

/// What stands before the head, under the names of a checkpoint.
#[derive(Clone, Debug, LoraModel)]
enum Proper {
    /// Of a model without a head.
    Stack(#[lora(flatten)] Stack),
    Bert {
        bert: Stack,
    },
    Roberta {
        roberta: Stack,
    },
    Distilbert {
        distilbert: Stack,
    },
    /// Of a ModernBERT without a head.
    Modern(#[lora(flatten)] Modern),
    Modernbert {
        model: Modern,
    },
}

impl Encoder {
    /// A model with the weights of `vb`, under the names of transformers. A head that shares the
    /// embedding's weight asks for no weight of its own.
    ///
    /// # Errors
    /// If the task needs classes and there are none, or a weight is missing or has another shape.
    pub fn new(config: &EncoderConfig, vb: VarBuilder) -> Result<Self> {
        let classifies = matches!(
            config.task,
            Task::SequenceClassification | Task::TokenClassification
        );
        if classifies && config.labels.is_empty() {
            bail!("the configuration has no labels: a classifier needs classes");
        }
        let proper = Proper::new(config, &vb)?;
        let head = Head::new(config, proper.words(), vb)?;
        Ok(Self {
            config: config.clone(),
            proper,
            head,
        })
    }
}

impl Proper {
    fn new(config: &EncoderConfig, vb: &VarBuilder) -> Result<Self> {
        let prefix = config.prefix();
        let inner = match prefix {
            Some(prefix) => vb.pp(prefix),
            None => vb.clone(),
        };
        if let Some(modern) = &config.modern {
            let model = Modern::new(config, modern, inner)?;
            return Ok(match prefix {
                None => Self::Modern(model),
                Some(_) => Self::Modernbert { model },
            });
        }
        let stack = Stack::new(config, inner)?;
        Ok(match (prefix, config.family) {
            (None, _) => Self::Stack(stack),
            (_, EncoderFamily::Roberta) => Self::Roberta { roberta: stack },
            (_, EncoderFamily::Distilbert) => Self::Distilbert { distilbert: stack },
            _ => Self::Bert { bert: stack },
        })
    }

    /// The weight that a head may share.
    fn words(&self) -> &Tensor {
        match self {
            Self::Stack(stack)
            | Self::Bert { bert: stack }
            | Self::Roberta { roberta: stack }
            | Self::Distilbert { distilbert: stack } => stack.words(),
            Self::Modern(modern) | Self::Modernbert { model: modern } => modern.words(),
        }
    }
}

#[lora::forward]
impl Proper {
    /// The last layer's output.
    fn forward(
        &self,
        inputs: &Inputs<'_>,
        config: &EncoderConfig,
        context: &Context,
    ) -> Result<Tensor> {
        match self {
            Self::Stack(stack)
            | Self::Bert { bert: stack }
            | Self::Roberta { roberta: stack }
            | Self::Distilbert { distilbert: stack } => stack.forward(inputs, config, context),
            Self::Modern(modern) | Self::Modernbert { model: modern } => {
                modern.forward(inputs, config, context)
            }
        }
    }

    /// The vector that a head for texts classifies, of the pooled hidden states.
    fn pooled(&self, pooled: Tensor) -> Result<Tensor> {
        match self {
            Self::Bert { bert } => bert.pooled(&pooled),
            _ => Ok(pooled),
        }
    }
}

#[lora::forward]
impl Encoder {
    /// The configuration.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// What the model's task asks for: logits (batch, labels) of texts, (batch, time, labels) or
    /// (batch, time, vocab_size) of tokens; without a head the hidden states. With `train` numbers
    /// are dropped as the configuration says.
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states).
    pub fn forward(&self, inputs: &Inputs<'_>, train: bool) -> Result<Tensor> {
        let mut context = Context::new(&self.config, inputs, train)?;
        let is_bert = self.config.modern.is_none();
        if is_bert && self.config.task == Task::SequenceClassification {
            context = context.for_first_token();
        }
        let hidden = self.proper.forward(inputs, &self.config, &context)?;
        self.head_of(&hidden, inputs, &context)
    }

    /// The last layer's output, (batch, time, hidden_size).
    ///
    /// # Errors
    /// If the ids are no integers below `vocab_size`, a text is longer than the model has positions
    /// for, or mask or types do not fit.
    pub fn hidden_states(&self, inputs: &Inputs<'_>, train: bool) -> Result<Tensor> {
        let context = Context::new(&self.config, inputs, train)?;
        self.proper.forward(inputs, &self.config, &context)
    }

    /// The embedding of each text, (batch, hidden_size), by the configuration's `pooling` and
    /// `normalize`.
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states).
    pub fn embed(&self, inputs: &Inputs<'_>, train: bool) -> Result<Tensor> {
        let hidden = self.hidden_states(inputs, train)?;
        let embeddings = self.config.pooling.pool(&hidden, inputs)?;
        match self.config.normalize {
            true => pooling::normalized(&embeddings),
            false => Ok(embeddings),
        }
    }

    /// What [`forward`](Self::forward) makes of hidden states.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn logits(&self, hidden: &Tensor, inputs: &Inputs<'_>, train: bool) -> Result<Tensor> {
        self.head_of(hidden, inputs, &Context::new(&self.config, inputs, train)?)
    }

    fn head_of(&self, hidden: &Tensor, inputs: &Inputs<'_>, context: &Context) -> Result<Tensor> {
        if self.config.task != Task::SequenceClassification {
            return self.head.forward(hidden, context);
        }
        let modern = self.config.modern.as_ref();
        let pooling = modern.map_or(Pooling::Cls, |modern| modern.classifier_pooling);
        let pooled = self.proper.pooled(pooling.pool(hidden, inputs)?)?;
        self.head.forward(&pooled, context)
    }
}

impl Architecture for Encoder {
    type Config = EncoderConfig;
    const CLASSIFIER: &'static str = "classifier";

    fn variants() -> &'static [Variant<EncoderConfig>] {
        &[]
    }

    /// With 0 classes the model has no head. There are no images, so that `in_chans` has no meaning.
    fn with_options(config: &EncoderConfig, options: &Options) -> EncoderConfig {
        let config = match options.task {
            Some(task) => config.clone().with_task(task),
            None => config.clone(),
        };
        match options.num_classes {
            Some(0) => config.with_task(Task::Features),
            Some(classes) => config.with_num_labels(classes),
            None => config,
        }
    }

    fn build(config: &EncoderConfig, vb: VarBuilder) -> Result<Self> {
        Self::new(config, vb)
    }

    /// The head's, if the options ask for a task or a number of classes. The pooler of a model
    /// without a head may be missing, as nothing but its owner's code reads it.
    fn heads(config: &EncoderConfig, options: &Options) -> Vec<&'static str> {
        let is_asked_for = options.task.is_some() || options.num_classes.is_some();
        match is_asked_for || config.task == Task::Features {
            true => names::heads(config),
            false => Vec::new(),
        }
    }

    fn other_names(config: &EncoderConfig, name: &str) -> Vec<String> {
        names::other_names(config, name)
    }

    fn extra(config: &EncoderConfig, name: &str) -> Extra {
        names::extra(config, name)
    }
}

fn table(rows: usize, width: usize, vb: VarBuilder) -> Result<Embedding> {
    let weight = vb.get_with_hints((rows, width), "weight", WEIGHT)?;
    Ok(Embedding::new(weight, width))
}
