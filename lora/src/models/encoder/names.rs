//! How files name what the model has, and what they hold beside.

use super::config::{EncoderConfig, EncoderFamily};
use crate::config::matching::is_or_starts_with;
use crate::models::{Extra, Task};

/// The heads of all tasks. One that the model does not have is of no use.
const HEADS: [&str; 9] = [
    "cls",
    "lm_head",
    "vocab_transform",
    "vocab_layer_norm",
    "vocab_projector",
    "classifier",
    "pre_classifier",
    "head",
    "qa_outputs",
];

/// The modules of a task's head, and the pooler.
pub(super) fn heads(config: &EncoderConfig) -> Vec<&'static str> {
    use EncoderFamily::{Bert, Distilbert, Modernbert, Roberta};
    match (config.family, config.task) {
        (Bert | Roberta, Task::Features) => vec!["pooler"],
        (_, Task::Features) => vec![],
        (Bert, Task::SequenceClassification) => vec!["bert.pooler", "classifier"],
        (Roberta, Task::SequenceClassification) => vec!["classifier.dense", "classifier.out_proj"],
        (Distilbert, Task::SequenceClassification) => vec!["pre_classifier", "classifier"],
        (Bert | Roberta | Distilbert, Task::TokenClassification) => vec!["classifier"],
        (Modernbert, Task::MaskedLm) => vec!["head", "decoder"],
        (Modernbert, _) => vec!["head", "classifier"],
        (Bert, Task::MaskedLm) => vec!["cls"],
        (Roberta, Task::MaskedLm) => vec!["lm_head"],
        (Distilbert, Task::MaskedLm) => {
            vec!["vocab_transform", "vocab_layer_norm", "vocab_projector"]
        }
    }
}

/// Other names that a file may have for a parameter: with or without the prefix of a model with a
/// head; as TensorFlow calls norms, in the oldest files; the bias of a tied head.
pub(super) fn other_names(config: &EncoderConfig, name: &str) -> Vec<String> {
    let prefix = config.family.prefix();
    let mut names = vec![name.to_string()];
    match name
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('.'))
    {
        Some(rest) => names.push(rest.into()),
        None => names.push(format!("{prefix}.{name}")),
    }
    for (ours, older) in [("weight", "gamma"), ("bias", "beta")] {
        let end = format!("LayerNorm.{ours}");
        let of_norms = names.iter().filter_map(|name| name.strip_suffix(&end));
        let older: Vec<String> = of_norms
            .map(|start| format!("{start}LayerNorm.{older}"))
            .collect();
        names.extend(older);
    }
    for [apart, within] in [
        ["cls.predictions.bias", "cls.predictions.decoder.bias"],
        ["lm_head.bias", "lm_head.decoder.bias"],
    ] {
        for (ours, other) in [(apart, within), (within, apart)] {
            if name == ours {
                names.push(other.into());
            }
        }
    }
    names
}

/// What a tensor is for which the model has no parameter.
pub(super) fn extra(config: &EncoderConfig, name: &str) -> Extra {
    let tied = config.task == Task::MaskedLm && config.tie_word_embeddings;
    let copy = match name {
        "cls.predictions.decoder.weight" => Some("bert.embeddings.word_embeddings.weight"),
        "cls.predictions.decoder.bias" => Some("cls.predictions.bias"),
        "lm_head.decoder.weight" => Some("roberta.embeddings.word_embeddings.weight"),
        "lm_head.decoder.bias" => Some("lm_head.bias"),
        "vocab_projector.weight" => Some("distilbert.embeddings.word_embeddings.weight"),
        "decoder.weight" => Some("model.embeddings.tok_embeddings.weight"),
        _ => None,
    };
    if let Some(copy) = copy.filter(|_| tied) {
        return Extra::CopyOf(copy);
    }
    let prefix = config.family.prefix();
    let bare = name
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('.'));
    let bare = bare.unwrap_or(name);
    let is_of = |module: &&str| is_or_starts_with(name, module);
    let of_modern = config.family == EncoderFamily::Modernbert && is_of(&"decoder");
    match bare {
        "embeddings.position_ids" | "embeddings.token_type_ids" => Extra::Harmless,
        _ if is_or_starts_with(bare, "pooler") => Extra::Harmless,
        _ if HEADS.iter().any(is_of) || of_modern => Extra::Harmless,
        _ => Extra::Unknown,
    }
}
