//! Reading a `config.json`.

use super::families::{EncoderFamily, KINDS, Kind};
use super::{Dropouts, EncoderConfig, ModernBertConfig};
use crate::models::encoder::pooling::Pooling;
use crate::models::keys::{self, Keys, MAX_LAYERS, MAX_WIDTH};
use crate::models::{Task, labels};
use candle_nn::Activation;
use serde_json::{Map, Value};

/// More than any model has. A damaged file must not make us ask for all memory.
const MAX_TOKENS: usize = 1 << 30;

/// The ends of the classes' names.
const TASKS: [(&str, Task); 5] = [
    ("Model", Task::Features),
    ("ForSequenceClassification", Task::SequenceClassification),
    ("ForTokenClassification", Task::TokenClassification),
    ("ForMaskedLM", Task::MaskedLm),
    ("ForPreTraining", Task::MaskedLm),
];

/// Keys that say nothing about the result: of files, tokens, training and outputs.
const HARMLESS: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "_num_labels",
    "architectures",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cls_token_id",
    "deterministic_flash_attn",
    "directionality",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "global_attn_every_n_layers",
    "gradient_checkpointing",
    "id2label",
    "initializer_cutoff_factor",
    "initializer_range",
    "label2id",
    "mask_token_id",
    "max_length",
    "model_max_length",
    "model_type",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "problem_type",
    "qa_dropout",
    "reference_compile",
    "repad_logits_with_grad",
    "return_dict",
    "sep_token_id",
    "sinusoidal_pos_embds",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "tie_weights_",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "use_cache",
];

impl EncoderConfig {
    /// Whether a file describes an encoder, by its type or class.
    pub(in crate::models) fn is_of(map: &Map<String, Value>) -> bool {
        kind(&Keys::new(map)).is_ok()
    }

    /// The values of `model_type` that are supported.
    pub(in crate::models) fn model_types() -> impl Iterator<Item = &'static str> {
        KINDS.iter().map(|kind| kind.model_type)
    }

    /// Reads a configuration, or tells everything wrong with it. The file's task does not matter if
    /// another one is asked for.
    pub(in crate::models) fn parse(
        map: &Map<String, Value>,
        asked: Option<Task>,
    ) -> Result<Self, Vec<String>> {
        let keys = Keys::new(map);
        let kind = kind(&keys).map_err(|problem| vec![problem])?;
        let task = asked.unwrap_or_else(|| task(&keys, kind));
        let mut config = match kind.family {
            EncoderFamily::Distilbert => distilbert(&keys, kind, task),
            EncoderFamily::Modernbert => modernbert(&keys, kind, task),
            EncoderFamily::Bert | EncoderFamily::Roberta => bert(&keys, kind, task),
        };
        config.tie_word_embeddings = keys.get("tie_word_embeddings", true);
        config.labels = labels::read(&keys);
        check(&config, &keys);
        config.without_effect = keys.without_effect(&[], HARMLESS);
        let problems = keys.into_problems();
        match problems.is_empty() {
            true => Ok(config),
            false => Err(problems),
        }
    }
}

fn classes(keys: &Keys<'_>) -> Vec<String> {
    keys.get("architectures", Vec::new())
}

/// The task of a class.
fn task_of(kind: &Kind, class: &str) -> Option<Task> {
    let end = class.strip_prefix(kind.class)?;
    let task = TASKS.iter().find(|(name, _)| *name == end)?;
    Some(task.1)
}

fn kind(keys: &Keys<'_>) -> Result<&'static Kind, String> {
    let name: Option<String> = keys.find("model_type");
    let classes = classes(keys);
    let is_one = |kind: &&Kind| match &name {
        Some(name) => kind.model_type == name,
        None => classes.iter().any(|class| task_of(kind, class).is_some()),
    };
    KINDS.iter().find(is_one).ok_or_else(|| {
        let known: Vec<&str> = EncoderConfig::model_types().collect();
        let is = match &name {
            Some(name) => format!("{name:?}"),
            None => "missing".into(),
        };
        format!("`model_type` is {is}: encoders are {}", known.join(", "))
    })
}

/// The task that the file's class has; that of a model without a head if the file names no class.
fn task(keys: &Keys<'_>, kind: &Kind) -> Task {
    let classes = classes(keys);
    let Some(class) = classes.first() else {
        return Task::Features;
    };
    task_of(kind, class).unwrap_or_else(|| {
        let ends: Vec<&str> = TASKS.iter().map(|(end, _)| *end).collect();
        let supported = format!(
            "supported are {}{{{}}}; `Options::task` chooses another task",
            kind.class,
            ends.join(", ")
        );
        keys.refuse("architectures", &supported);
        Task::Features
    })
}

/// What all families have under the same key, with the values of the other keys to be filled in.
fn common(keys: &Keys<'_>, kind: &Kind, task: Task) -> EncoderConfig {
    let pad = keys.nullable("pad_token_id", Some(kind.pad_token_id));
    EncoderConfig {
        model_type: kind.model_type.into(),
        family: kind.family,
        task,
        vocab_size: keys.count("vocab_size", kind.vocab_size, MAX_TOKENS),
        hidden_size: 0,
        intermediate_size: 0,
        num_hidden_layers: 0,
        num_attention_heads: 0,
        max_position_embeddings: keys.count(
            "max_position_embeddings",
            kind.max_position_embeddings,
            MAX_TOKENS,
        ),
        type_vocab_size: 0,
        pad_token_id: pad,
        layer_norm_eps: 1e-12,
        hidden_act: Activation::Gelu,
        dropouts: Dropouts::default(),
        tie_word_embeddings: true,
        labels: Vec::new(),
        pooling: Pooling::Mean,
        normalize: false,
        modern: None,
        without_effect: Vec::new(),
    }
}

/// The widths and counts, under these keys: of the hidden states, of the MLPs, of layers and heads.
fn sizes(config: &mut EncoderConfig, keys: &Keys<'_>, kind: &Kind, names: [&str; 4]) {
    let [hidden, inner, layers, heads] = names;
    config.hidden_size = keys.count(hidden, 768, MAX_WIDTH);
    config.intermediate_size = keys.count(inner, kind.intermediate_size, MAX_WIDTH);
    config.num_hidden_layers = keys.count(layers, kind.num_hidden_layers, MAX_LAYERS);
    config.num_attention_heads = keys.count(heads, 12, MAX_WIDTH);
    let (width, count) = (config.hidden_size, config.num_attention_heads);
    if !width.is_multiple_of(count) {
        let reason = format!("it must divide the width of {width} (`{hidden}`)");
        keys.refuse(heads, &reason);
    }
}

const SIZES: [&str; 4] = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
];

fn bert(keys: &Keys<'_>, kind: &Kind, task: Task) -> EncoderConfig {
    let mut config = common(keys, kind, task);
    sizes(&mut config, keys, kind, SIZES);
    config.type_vocab_size = keys.count("type_vocab_size", 2, MAX_WIDTH);
    config.layer_norm_eps = keys.get("layer_norm_eps", 1e-12);
    config.hidden_act = activation(keys, "hidden_act");
    let hidden = keys.dropout("hidden_dropout_prob", 0.1);
    config.dropouts = Dropouts {
        embeddings: hidden,
        attention: keys.dropout("attention_probs_dropout_prob", 0.1),
        output: hidden,
        mlp: hidden,
        classifier: keys.dropout("classifier_dropout", hidden),
    };
    config
}

fn distilbert(keys: &Keys<'_>, kind: &Kind, task: Task) -> EncoderConfig {
    let mut config = common(keys, kind, task);
    sizes(
        &mut config,
        keys,
        kind,
        ["dim", "hidden_dim", "n_layers", "n_heads"],
    );
    config.hidden_act = activation(keys, "activation");
    let hidden = keys.dropout("dropout", 0.1);
    let of_texts = keys.dropout("seq_classif_dropout", 0.2);
    config.dropouts = Dropouts {
        embeddings: hidden,
        attention: keys.dropout("attention_dropout", 0.1),
        output: 0.0,
        mlp: hidden,
        classifier: match task {
            Task::SequenceClassification => of_texts,
            _ => hidden,
        },
    };
    config
}

fn modernbert(keys: &Keys<'_>, kind: &Kind, task: Task) -> EncoderConfig {
    let mut config = common(keys, kind, task);
    sizes(&mut config, keys, kind, SIZES);
    config.layer_norm_eps = keys.get("norm_eps", 1e-5);
    // Published files repeat the setting under BERT's name.
    keys.find::<f64>("layer_norm_eps");
    config.hidden_act = activation(keys, "hidden_activation");
    let attention = keys.dropout("attention_dropout", 0.0);
    config.dropouts = Dropouts {
        embeddings: keys.dropout("embedding_dropout", 0.0),
        attention,
        output: attention,
        mlp: keys.dropout("mlp_dropout", 0.0),
        classifier: keys.dropout("classifier_dropout", 0.0),
    };
    config.modern = Some(ModernBertConfig::read(keys, config.num_hidden_layers));
    let head_dim = config.hidden_size / config.num_attention_heads;
    if !head_dim.is_multiple_of(2) {
        let reason = format!("heads of {head_dim} numbers cannot turn in pairs");
        keys.refuse("num_attention_heads", &reason);
    }
    config
}

/// An activation, GELU by default.
pub(super) fn activation(keys: &Keys<'_>, key: &str) -> Activation {
    let name: String = keys.get(key, "gelu".into());
    if name == "gelu_fast" {
        return Activation::GeluPytorchTanh;
    }
    keys::activation(&name).unwrap_or_else(|| {
        keys.refuse(key, "supported are gelu, gelu_pytorch_tanh, relu, silu");
        Activation::Gelu
    })
}

/// What no single key shows, and what is not supported.
fn check(config: &EncoderConfig, keys: &Keys<'_>) {
    for key in ["is_decoder", "add_cross_attention", "is_encoder_decoder"] {
        keys.only(key, &Value::Bool(false));
    }
    keys.only("position_embedding_type", &Value::from("absolute"));
    for key in ["pruned_heads", "quantization_config"] {
        let value: Option<Value> = keys.find(key);
        let empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
        if value.is_some_and(|value| !empty(&value)) {
            keys.refuse(key, "only whole, unquantised models are supported");
        }
    }
    let fits = |pad: u32| (pad as usize) < config.vocab_size;
    if config.pad_token_id.is_some_and(|pad| !fits(pad)) {
        let reason = format!(
            "a token below vocab_size, {}, is expected",
            config.vocab_size
        );
        keys.refuse("pad_token_id", &reason);
    }
    let first = config.first_position();
    if config.family == EncoderFamily::Roberta {
        if config.pad_token_id.is_none() {
            keys.refuse("pad_token_id", "positions are counted from this token on");
        }
        if first >= config.max_position_embeddings {
            let reason = format!("the positions begin with {first}");
            keys.refuse("max_position_embeddings", &reason);
        }
    }
}

impl EncoderConfig {
    /// The tokens of the longest text that the model has positions for.
    pub fn longest(&self) -> usize {
        self.max_position_embeddings
            .saturating_sub(self.first_position())
    }

    /// The position of a text's first token.
    pub(in crate::models::encoder) fn first_position(&self) -> usize {
        match (self.family, self.pad_token_id) {
            (EncoderFamily::Roberta, Some(pad)) => pad as usize + 1,
            _ => 0,
        }
    }
}
