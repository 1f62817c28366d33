//! The families, and transformers' defaults for each `model_type`.

/// What the layers and heads of an encoder are called, and what stands in the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncoderFamily {
    /// BERT, MiniLM, and most sentence encoders.
    Bert,
    /// RoBERTa, XLM-R and CamemBERT: BERT with other positions and heads.
    Roberta,
    /// DistilBERT: BERT without kinds of tokens.
    Distilbert,
    /// ModernBERT: rotary positions, norms in front, gated MLPs, local attention.
    Modernbert,
}

impl EncoderFamily {
    /// What stands before the encoder's paths in a model with a head.
    pub(in crate::models::encoder) fn prefix(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::Distilbert => "distilbert",
            Self::Modernbert => "model",
        }
    }
}

/// A `model_type`.
pub(super) struct Kind {
    pub(super) model_type: &'static str,
    /// What stands before `Model` or `ForMaskedLM` in the name of its class.
    pub(super) class: &'static str,
    pub(super) family: EncoderFamily,
    pub(super) vocab_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) max_position_embeddings: usize,
    pub(super) pad_token_id: u32,
}

/// BERT, from which the others differ.
const BERT: Kind = Kind {
    model_type: "bert",
    class: "Bert",
    family: EncoderFamily::Bert,
    vocab_size: 30522,
    intermediate_size: 3072,
    num_hidden_layers: 12,
    max_position_embeddings: 512,
    pad_token_id: 0,
};

const ROBERTA: Kind = Kind {
    model_type: "roberta",
    class: "Roberta",
    family: EncoderFamily::Roberta,
    vocab_size: 50265,
    pad_token_id: 1,
    ..BERT
};

pub(super) static KINDS: [Kind; 6] = [
    BERT,
    ROBERTA,
    Kind {
        model_type: "xlm-roberta",
        class: "XLMRoberta",
        vocab_size: 30522,
        ..ROBERTA
    },
    Kind {
        model_type: "camembert",
        class: "Camembert",
        vocab_size: 30522,
        ..ROBERTA
    },
    Kind {
        model_type: "distilbert",
        class: "DistilBert",
        family: EncoderFamily::Distilbert,
        num_hidden_layers: 6,
        ..BERT
    },
    Kind {
        model_type: "modernbert",
        class: "ModernBert",
        family: EncoderFamily::Modernbert,
        vocab_size: 50368,
        intermediate_size: 1152,
        num_hidden_layers: 22,
        max_position_embeddings: 8192,
        pad_token_id: 50283,
    },
];
