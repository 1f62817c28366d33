//! What an encoder looks like.

mod families;
mod modern;
mod parse;

pub use families::EncoderFamily;
pub use modern::ModernBertConfig;

use super::pooling::Pooling;
use crate::models::{Task, labels};
use candle_nn::Activation;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The architecture of an [`Encoder`](super::Encoder).
///
/// It is read from a `config.json` of the Hugging Face hub, with transformers' defaults for each
/// `model_type`: `bert` (which MiniLM and most sentence encoders have, too), `roberta`, `xlm-roberta`,
/// `camembert`, `distilbert` and `modernbert`. A setting that is not supported and would change the
/// result is an error.
///
/// ```
/// use lora::models::{Task, encoder::EncoderConfig};
///
/// let config: EncoderConfig = serde_json::from_str(
///     r#"{"model_type": "bert", "architectures": ["BertForSequenceClassification"],
///         "hidden_size": 384, "id2label": {"0": "ham", "1": "spam"}}"#,
/// )?;
/// assert_eq!((config.hidden_size, config.num_hidden_layers), (384, 12));
/// assert_eq!(config.task, Task::SequenceClassification);
/// assert_eq!(config.labels, ["ham", "spam"]);
/// let wrong = r#"{"model_type": "bert", "position_embedding_type": "relative_key"}"#;
/// let error = serde_json::from_str::<EncoderConfig>(wrong).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "`position_embedding_type` is \"relative_key\": only \"absolute\" is supported"
/// );
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
#[non_exhaustive]
pub struct EncoderConfig {
    /// The type that the file names, for example `xlm-roberta`.
    pub model_type: String,
    /// The family, which decides names and heads.
    pub family: EncoderFamily,
    /// What the model computes, which decides its head.
    pub task: Task,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width within each MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of each layer; they divide the width.
    pub num_attention_heads: usize,
    /// Rows of the table of positions. ModernBERT has none; there it is the length that the model
    /// is made for.
    pub max_position_embeddings: usize,
    /// Kinds of tokens; 0 in a family without.
    pub type_vocab_size: usize,
    /// The token that fills a text up. RoBERTa counts its positions without that token, from the
    /// token's number + 1 on.
    pub pad_token_id: Option<u32>,
    /// What the norms add to the variance.
    pub layer_norm_eps: f64,
    /// The activation of the MLPs.
    pub hidden_act: Activation,
    /// How much is dropped in training.
    pub dropouts: Dropouts,
    /// The head for hidden tokens shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// The names of the classes.
    pub labels: Vec<String>,
    /// How a text's hidden states become its embedding.
    pub pooling: Pooling,
    /// Embeddings are made one long.
    pub normalize: bool,
    /// What only ModernBERT has.
    pub modern: Option<ModernBertConfig>,
    /// Settings of the file that have no effect here: keys that the family does not have in
    /// transformers either.
    pub without_effect: Vec<String>,
}

/// Which share of the numbers is dropped in training, of an [`EncoderConfig`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Dropouts {
    /// Behind the embeddings.
    pub embeddings: f64,
    /// Of the attention's weights.
    pub attention: f64,
    /// Behind the attention.
    pub output: f64,
    /// Behind the MLP; in ModernBERT within.
    pub mlp: f64,
    /// In front of the classifier.
    pub classifier: f64,
}

impl EncoderConfig {
    /// The configuration for another task.
    pub fn with_task(mut self, task: Task) -> Self {
        self.task = task;
        self
    }

    /// The configuration with so many classes. If that is another number, the names are
    /// `LABEL_0`, `LABEL_1`, ..
    pub fn with_num_labels(mut self, count: usize) -> Self {
        self.labels = labels::for_count(self.labels, count);
        self
    }

    /// The layer of the encoder proper, which a model without a head has under no name.
    pub(super) fn prefix(&self) -> Option<&'static str> {
        (self.task != Task::Features).then_some(self.family.prefix())
    }

    /// Whether the model has BERT's layer behind the first token.
    pub(super) fn has_pooler(&self) -> bool {
        match self.family {
            EncoderFamily::Bert => {
                matches!(self.task, Task::Features | Task::SequenceClassification)
            }
            EncoderFamily::Roberta => self.task == Task::Features,
            EncoderFamily::Distilbert | EncoderFamily::Modernbert => false,
        }
    }
}

impl TryFrom<Map<String, Value>> for EncoderConfig {
    type Error = String;

    fn try_from(map: Map<String, Value>) -> Result<Self, String> {
        Self::parse(&map, None).map_err(|problems| problems.join("\n"))
    }
}
