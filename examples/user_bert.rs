//! BERT as a user of the crate writes it: candle layers, the derive, and the ops that have a gradient.
//! Nothing is fused by hand.
//!
//! Parameter names are those of a checkpoint on the hub, so that PEFT's adapters fit. The families that
//! differ from BERT are left to [`lora::models::encoder`].

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::{
    Activation, Dropout, Embedding, LayerNorm, Linear, VarBuilder, embedding, layer_norm, linear,
};
use lora::LoraModel;
use lora::models::encoder::{Encoder, EncoderConfig, EncoderFamily};
use lora::models::{Architecture, Extra, Options, Task, Variant};
use lora::ops::Attention;

/// A model that tells the class of a text.
#[derive(Clone, Debug, LoraModel)]
pub struct Bert {
    bert: Stack,
    dropout: Dropout,
    classifier: Linear,
}

#[derive(Clone, Debug, LoraModel)]
struct Stack {
    embeddings: Embeddings,
    encoder: Layers,
    pooler: Dense,
}

#[derive(Clone, Debug, LoraModel)]
struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    #[lora(name = "LayerNorm")]
    norm: LayerNorm,
    dropout: Dropout,
}

#[derive(Clone, Debug, LoraModel)]
struct Layers {
    layer: Vec<Layer>,
}

#[derive(Clone, Debug, LoraModel)]
struct Layer {
    attention: SelfAttention,
    intermediate: Dense,
    act: Activation,
    output: Output,
}

#[derive(Clone, Debug, LoraModel)]
struct SelfAttention {
    #[lora(name = "self")]
    inputs: Inputs,
    output: Output,
    heads: usize,
    dropout: f64,
}

#[derive(Clone, Debug, LoraModel)]
struct Inputs {
    #[lora(rank)]
    query: Linear,
    key: Linear,
    #[lora(rank)]
    value: Linear,
}

#[derive(Clone, Debug, LoraModel)]
struct Dense {
    dense: Linear,
}

/// What stands behind attention and MLP.
#[derive(Clone, Debug, LoraModel)]
struct Output {
    dense: Linear,
    dropout: Dropout,
    #[lora(name = "LayerNorm")]
    norm: LayerNorm,
}

#[lora::forward]
impl Bert {
    /// The logits, (batch, classes), of ids (batch, time). A mask (batch, time) has 1 for tokens and 0
    /// for padding. With `train` numbers are dropped.
    ///
    /// # Errors
    /// If an id is outside of the vocabulary, a text is too long, or the mask does not fit.
    pub fn forward(&self, ids: &Tensor, mask: Option<&Tensor>, train: bool) -> Result<Tensor> {
        let mut xs = self.bert.embeddings.forward(ids, train)?;
        for layer in &self.bert.encoder.layer {
            xs = layer.forward(&xs, mask, train)?;
        }
        let first = xs.narrow(1, 0, 1)?.squeeze(1)?;
        let pooled = first.apply(&self.bert.pooler.dense)?.tanh()?;
        let pooled = self.dropout.forward(&pooled, train)?;
        pooled.apply(&self.classifier)
    }
}

#[lora::forward]
impl Embeddings {
    fn forward(&self, ids: &Tensor, train: bool) -> Result<Tensor> {
        let (_, time) = ids.dims2()?;
        let positions = Tensor::arange(0, time as u32, ids.device())?;
        let first_type = Tensor::zeros(1, DType::U32, ids.device())?;
        let xs = ids
            .apply(&self.word_embeddings)?
            .broadcast_add(&positions.apply(&self.position_embeddings)?)?
            .broadcast_add(&first_type.apply(&self.token_type_embeddings)?)?;
        self.dropout.forward(&xs.apply(&self.norm)?, train)
    }
}

#[lora::forward]
impl Layer {
    fn forward(&self, xs: &Tensor, mask: Option<&Tensor>, train: bool) -> Result<Tensor> {
        let xs = self.attention.forward(xs, mask, train)?;
        let ys = xs.apply(&self.intermediate.dense)?.apply(&self.act)?;
        self.output.forward(&ys, &xs, train)
    }
}

#[lora::forward]
impl SelfAttention {
    fn forward(&self, xs: &Tensor, mask: Option<&Tensor>, train: bool) -> Result<Tensor> {
        let (batch, time, width) = xs.dims3()?;
        let dim = width / self.heads;
        let heads = |xs: Tensor| xs.reshape((batch, time, self.heads, dim))?.transpose(1, 2);
        let q = heads(xs.apply(&self.inputs.query)?)?;
        let k = heads(xs.apply(&self.inputs.key)?)?;
        let v = heads(xs.apply(&self.inputs.value)?)?;
        let mut attention = Attention::new((dim as f64).powf(-0.5));
        if let Some(mask) = mask {
            attention = attention.sequences(mask);
        }
        if train {
            attention = attention.dropout(self.dropout);
        }
        let ys = attention.forward(&q, &k, &v)?;
        let ys = ys.transpose(1, 2)?.flatten_from(2)?;
        self.output.forward(&ys, xs, train)
    }
}

#[lora::forward]
impl Output {
    fn forward(&self, ys: &Tensor, shortcut: &Tensor, train: bool) -> Result<Tensor> {
        let ys = self.dropout.forward(&ys.apply(&self.dense)?, train)?;
        (ys + shortcut)?.apply(&self.norm)
    }
}

impl Bert {
    /// A model with the weights of `vb`.
    ///
    /// # Errors
    /// If the configuration is not that of a BERT for classes of texts, or a weight is missing or has
    /// another shape.
    pub fn new(config: &EncoderConfig, vb: VarBuilder) -> Result<Self> {
        if config.family != EncoderFamily::Bert || config.task != Task::SequenceClassification {
            bail!("the user's BERT is a BertForSequenceClassification");
        }
        let (width, of_bert) = (config.hidden_size, vb.pp("bert"));
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::new(config, of_bert.pp("encoder.layer").pp(index)));
        let bert = Stack {
            embeddings: Embeddings::new(config, of_bert.pp("embeddings"))?,
            encoder: Layers {
                layer: layers.collect::<Result<_>>()?,
            },
            pooler: dense(width, width, of_bert.pp("pooler"))?,
        };
        Ok(Self {
            bert,
            dropout: Dropout::new(config.dropouts.classifier as f32),
            classifier: linear(width, config.labels.len(), vb.pp("classifier"))?,
        })
    }
}

impl Embeddings {
    fn new(config: &EncoderConfig, vb: VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        let table = |rows, name: &str| embedding(rows, width, vb.pp(name));
        Ok(Self {
            word_embeddings: table(config.vocab_size, "word_embeddings")?,
            position_embeddings: table(config.max_position_embeddings, "position_embeddings")?,
            token_type_embeddings: table(config.type_vocab_size, "token_type_embeddings")?,
            norm: layer_norm(width, config.layer_norm_eps, vb.pp("LayerNorm"))?,
            dropout: Dropout::new(config.dropouts.embeddings as f32),
        })
    }
}

impl Layer {
    fn new(config: &EncoderConfig, vb: VarBuilder) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let output = |inputs, dropout: f64, vb: VarBuilder| {
            Ok::<_, candle_core::Error>(Output {
                dense: linear(inputs, width, vb.pp("dense"))?,
                dropout: Dropout::new(dropout as f32),
                norm: layer_norm(width, config.layer_norm_eps, vb.pp("LayerNorm"))?,
            })
        };
        let input = |name: &str| linear(width, width, vb.pp("attention.self").pp(name));
        let attention = SelfAttention {
            inputs: Inputs {
                query: input("query")?,
                key: input("key")?,
                value: input("value")?,
            },
            output: output(width, config.dropouts.output, vb.pp("attention.output"))?,
            heads: config.num_attention_heads,
            dropout: config.dropouts.attention,
        };
        Ok(Self {
            attention,
            intermediate: dense(width, inner, vb.pp("intermediate"))?,
            act: config.hidden_act,
            output: output(inner, config.dropouts.mlp, vb.pp("output"))?,
        })
    }
}

fn dense(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Dense> {
    Ok(Dense {
        dense: linear(inputs, outputs, vb.pp("dense"))?,
    })
}

/// As the library's.
impl Architecture for Bert {
    type Config = EncoderConfig;
    const CLASSIFIER: &'static str = Encoder::CLASSIFIER;

    fn variants() -> &'static [Variant<EncoderConfig>] {
        &[]
    }

    fn with_options(config: &EncoderConfig, options: &Options) -> EncoderConfig {
        Encoder::with_options(config, options)
    }

    fn build(config: &EncoderConfig, vb: VarBuilder) -> Result<Self> {
        Self::new(config, vb)
    }

    fn heads(config: &EncoderConfig, options: &Options) -> Vec<&'static str> {
        Encoder::heads(config, options)
    }

    fn other_names(config: &EncoderConfig, name: &str) -> Vec<String> {
        Encoder::other_names(config, name)
    }

    fn extra(config: &EncoderConfig, name: &str) -> Extra {
        Encoder::extra(config, name)
    }
}
