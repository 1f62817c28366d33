//! What stands behind the encoder proper: the layers that make logits.

use super::config::{EncoderConfig, EncoderFamily, ModernBertConfig};
use super::context::Context;
use crate::LoraModel;
use crate::models::Task;
use crate::models::parts::{layer_norm, linear};
use candle_core::{Result, Tensor};
use candle_nn::{Activation, LayerNorm, Linear, VarBuilder, init};

/// A layer, an activation and a norm, of which a head may lack any, and the layer that makes logits.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Head {
    #[lora(flatten)]
    layers: Layers,
    /// tanh if `None`.
    act: Option<Activation>,
    /// Numbers are dropped in front of the first layer, too.
    drops_first: bool,
    dropout: f64,
}

/// The layers under the names of a checkpoint.
#[derive(Clone, Debug, LoraModel)]
enum Layers {
    /// A model without a head.
    None,
    /// BERT's for texts, behind its pooler, and the one for tokens.
    Classifier { classifier: Linear },
    /// RoBERTa's for texts.
    Roberta {
        #[lora(name = "classifier.dense")]
        dense: Linear,
        #[lora(name = "classifier.out_proj")]
        out_proj: Linear,
    },
    /// DistilBERT's for texts.
    Distilbert {
        pre_classifier: Linear,
        classifier: Linear,
    },
    /// ModernBERT's for texts and tokens.
    Modernbert {
        #[lora(name = "head.dense")]
        dense: Linear,
        #[lora(name = "head.norm")]
        norm: LayerNorm,
        classifier: Linear,
    },
    BertTokens {
        #[lora(name = "cls.predictions.transform.dense")]
        dense: Linear,
        #[lora(name = "cls.predictions.transform.LayerNorm")]
        norm: LayerNorm,
        #[lora(name = "cls.predictions.decoder")]
        decoder: Linear,
    },
    RobertaTokens {
        #[lora(name = "lm_head.dense")]
        dense: Linear,
        #[lora(name = "lm_head.layer_norm")]
        norm: LayerNorm,
        #[lora(name = "lm_head.decoder")]
        decoder: Linear,
    },
    DistilbertTokens {
        #[lora(name = "vocab_transform")]
        dense: Linear,
        #[lora(name = "vocab_layer_norm")]
        norm: LayerNorm,
        #[lora(name = "vocab_projector")]
        decoder: Linear,
    },
    ModernbertTokens {
        #[lora(name = "head.dense")]
        dense: Linear,
        #[lora(name = "head.norm")]
        norm: LayerNorm,
        decoder: Linear,
    },
}

impl Head {
    /// The head of the configuration's task. The logits of tokens may be made with the weight of the
    /// words.
    pub(super) fn new(config: &EncoderConfig, words: &Tensor, vb: VarBuilder) -> Result<Self> {
        use EncoderFamily::{Bert, Distilbert, Modernbert, Roberta};
        let of_texts = config.task == Task::SequenceClassification;
        let modern = config.modern.as_ref();
        let act = match (config.family, config.task) {
            (Modernbert, _) => modern.map(|modern| modern.classifier_activation),
            (Roberta, Task::SequenceClassification) => None,
            (Roberta, _) => Some(Activation::Gelu),
            (Distilbert, Task::SequenceClassification) => Some(Activation::Relu),
            (Bert | Distilbert, _) => Some(config.hidden_act),
        };
        Ok(Self {
            layers: match config.task {
                Task::Features => Layers::None,
                Task::MaskedLm => Layers::of_tokens(config, words, &vb)?,
                _ => Layers::of_classes(config, &vb)?,
            },
            act,
            drops_first: config.family == Roberta && of_texts,
            dropout: match config.task {
                Task::MaskedLm => 0.0,
                _ => config.dropouts.classifier,
            },
        })
    }
}

/// The biases of ModernBERT's first layer and norm.
fn biases(modern: Option<&ModernBertConfig>) -> (bool, bool) {
    modern.map_or((true, true), |modern| {
        (modern.classifier_bias, modern.norm_bias)
    })
}

impl Layers {
    fn of_classes(config: &EncoderConfig, vb: &VarBuilder) -> Result<Self> {
        let (width, classes) = (config.hidden_size, config.labels.len());
        let of_texts = config.task == Task::SequenceClassification;
        let classifier = |name: &str| linear(width, classes, true, vb.pp(name));
        Ok(match config.family {
            EncoderFamily::Roberta if of_texts => Self::Roberta {
                dense: linear(width, width, true, vb.pp("classifier.dense"))?,
                out_proj: classifier("classifier.out_proj")?,
            },
            EncoderFamily::Distilbert if of_texts => Self::Distilbert {
                pre_classifier: linear(width, width, true, vb.pp("pre_classifier"))?,
                classifier: classifier("classifier")?,
            },
            EncoderFamily::Modernbert => {
                let (bias, norm_bias) = biases(config.modern.as_ref());
                Self::Modernbert {
                    dense: linear(width, width, bias, vb.pp("head.dense"))?,
                    norm: layer_norm(width, norm_bias, config.layer_norm_eps, vb.pp("head.norm"))?,
                    classifier: classifier("classifier")?,
                }
            }
            _ => Self::Classifier {
                classifier: classifier("classifier")?,
            },
        })
    }

    fn of_tokens(config: &EncoderConfig, words: &Tensor, vb: &VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        let (bias, norm_bias) = biases(config.modern.as_ref());
        let dense = |name: &str| linear(width, width, bias, vb.pp(name));
        let norm = |name: &str| layer_norm(width, norm_bias, config.layer_norm_eps, vb.pp(name));
        // BERT and RoBERTa keep the bias of a tied head apart.
        let decoder = |name: &str, tied_bias: &str| {
            let has_bias = config
                .modern
                .as_ref()
                .is_none_or(|modern| modern.decoder_bias);
            if !config.tie_word_embeddings {
                return linear(width, config.vocab_size, has_bias, vb.pp(name));
            }
            let vb = vb.pp(tied_bias);
            let bias = || vb.get_with_hints(config.vocab_size, "bias", init::ZERO);
            let bias = has_bias.then(bias).transpose()?;
            Ok(Linear::new(words.clone(), bias))
        };
        Ok(match config.family {
            EncoderFamily::Bert => Self::BertTokens {
                dense: dense("cls.predictions.transform.dense")?,
                norm: norm("cls.predictions.transform.LayerNorm")?,
                decoder: decoder("cls.predictions.decoder", "cls.predictions")?,
            },
            EncoderFamily::Roberta => Self::RobertaTokens {
                dense: dense("lm_head.dense")?,
                norm: norm("lm_head.layer_norm")?,
                decoder: decoder("lm_head.decoder", "lm_head")?,
            },
            EncoderFamily::Distilbert => Self::DistilbertTokens {
                dense: dense("vocab_transform")?,
                norm: norm("vocab_layer_norm")?,
                decoder: decoder("vocab_projector", "vocab_projector")?,
            },
            EncoderFamily::Modernbert => Self::ModernbertTokens {
                dense: dense("head.dense")?,
                norm: norm("head.norm")?,
                decoder: decoder("decoder", "decoder")?,
            },
        })
    }
}

#[lora::forward]
impl Layers {
    /// The first layer, the norm, and the layer that makes logits.
    fn in_order(&self) -> (Option<&Linear>, Option<&LayerNorm>, Option<&Linear>) {
        match self {
            Self::None => (None, None, None),
            Self::Classifier { classifier } => (None, None, Some(classifier)),
            Self::Roberta { dense, out_proj } => (Some(dense), None, Some(out_proj)),
            Self::Distilbert {
                pre_classifier,
                classifier,
            } => (Some(pre_classifier), None, Some(classifier)),
            Self::Modernbert {
                dense,
                norm,
                classifier,
            } => (Some(dense), Some(norm), Some(classifier)),
            Self::BertTokens {
                dense,
                norm,
                decoder,
            }
            | Self::RobertaTokens {
                dense,
                norm,
                decoder,
            }
            | Self::DistilbertTokens {
                dense,
                norm,
                decoder,
            }
            | Self::ModernbertTokens {
                dense,
                norm,
                decoder,
            } => (Some(dense), Some(norm), Some(decoder)),
        }
    }
}

#[lora::forward]
impl Head {
    /// From (.., hidden_size) to logits, or the same in a model without a head.
    pub(super) fn forward(&self, xs: &Tensor, context: &Context) -> Result<Tensor> {
        let (dense, norm, last) = self.layers.in_order();
        let Some(last) = last else {
            return Ok(xs.clone());
        };
        let mut xs = xs.clone();
        if self.drops_first {
            xs = context.dropped(&xs, self.dropout)?;
        }
        if let Some(dense) = dense {
            xs = xs.apply(dense)?;
            xs = match &self.act {
                Some(act) => xs.apply(act)?,
                None => xs.tanh()?,
            };
        }
        if let Some(norm) = norm {
            xs = xs.apply(norm)?;
        }
        context.dropped(&xs, self.dropout)?.apply(last)
    }
}
