//! BERT's layer: attention and MLP, each beside a shortcut and in front of a norm.

use super::config::{Dropouts, EncoderConfig, EncoderFamily};
use super::context::Context;
use crate::LoraModel;
use crate::blocks::{AsLinear, Attention, Mlp};
use crate::models::parts::{layer_norm, linear};
use candle_core::{Result, Tensor};
use candle_nn::{Activation, LayerNorm, Linear, VarBuilder};

/// A layer of BERT, RoBERTa or DistilBERT.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Block {
    #[lora(flatten)]
    layers: Layers,
    act: Activation,
    heads: usize,
    #[lora(skip)]
    dropouts: Dropouts,
}

/// The layers under the names of a checkpoint.
#[derive(Clone, Debug, LoraModel)]
enum Layers {
    Bert {
        #[lora(rank, name = "attention.self.query")]
        query: Linear,
        #[lora(name = "attention.self.key")]
        key: Linear,
        #[lora(rank, name = "attention.self.value")]
        value: Linear,
        #[lora(name = "attention.output.dense")]
        output: Linear,
        #[lora(name = "attention.output.LayerNorm")]
        attention_norm: LayerNorm,
        #[lora(name = "intermediate.dense")]
        up: Linear,
        #[lora(name = "output.dense")]
        down: Linear,
        #[lora(name = "output.LayerNorm")]
        mlp_norm: LayerNorm,
    },
    Distilbert {
        #[lora(rank, name = "attention.q_lin")]
        query: Linear,
        #[lora(name = "attention.k_lin")]
        key: Linear,
        #[lora(rank, name = "attention.v_lin")]
        value: Linear,
        #[lora(name = "attention.out_lin")]
        output: Linear,
        #[lora(name = "sa_layer_norm")]
        attention_norm: LayerNorm,
        #[lora(name = "ffn.lin1")]
        up: Linear,
        #[lora(name = "ffn.lin2")]
        down: Linear,
        #[lora(name = "output_layer_norm")]
        mlp_norm: LayerNorm,
    },
}

impl Block {
    pub(super) fn new(config: &EncoderConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            layers: Layers::new(config, vb)?,
            act: config.hidden_act,
            heads: config.num_attention_heads,
            dropouts: config.dropouts,
        })
    }
}

impl Layers {
    fn new(config: &EncoderConfig, vb: VarBuilder) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let square = |name: &str| linear(width, width, true, vb.pp(name));
        let up = |name: &str| linear(width, inner, true, vb.pp(name));
        let down = |name: &str| linear(inner, width, true, vb.pp(name));
        let norm = |name: &str| layer_norm(width, true, config.layer_norm_eps, vb.pp(name));
        if config.family == EncoderFamily::Distilbert {
            return Ok(Self::Distilbert {
                query: square("attention.q_lin")?,
                key: square("attention.k_lin")?,
                value: square("attention.v_lin")?,
                output: square("attention.out_lin")?,
                attention_norm: norm("sa_layer_norm")?,
                up: up("ffn.lin1")?,
                down: down("ffn.lin2")?,
                mlp_norm: norm("output_layer_norm")?,
            });
        }
        Ok(Self::Bert {
            query: square("attention.self.query")?,
            key: square("attention.self.key")?,
            value: square("attention.self.value")?,
            output: square("attention.output.dense")?,
            attention_norm: norm("attention.output.LayerNorm")?,
            up: up("intermediate.dense")?,
            down: down("output.dense")?,
            mlp_norm: norm("output.LayerNorm")?,
        })
    }
}

#[lora::forward]
impl Layers {
    /// Query, key and value; output, up and down; the norms behind attention and MLP.
    #[allow(clippy::type_complexity)]
    fn in_order(&self) -> ([&Linear; 3], [&Linear; 3], [&LayerNorm; 2]) {
        match self {
            Self::Bert {
                query,
                key,
                value,
                output,
                attention_norm,
                up,
                down,
                mlp_norm,
            }
            | Self::Distilbert {
                query,
                key,
                value,
                output,
                attention_norm,
                up,
                down,
                mlp_norm,
            } => (
                [query, key, value],
                [output, up, down],
                [attention_norm, mlp_norm],
            ),
        }
    }
}

#[lora::forward]
impl Block {
    /// From (batch, time, hidden_size) to the same, or to as many first tokens as the context asks for.
    pub(super) fn forward(&self, xs: &Tensor, context: &Context) -> Result<Tensor> {
        let ([query, key, value], [output, up, down], [attention_norm, mlp_norm]) =
            self.layers.in_order();
        let core = context.attention(
            &context.all,
            xs.dim(2)? / self.heads,
            self.dropouts.attention,
        );
        let attention = Attention::new(query, key, value, output, self.heads).core(core);
        let attention = attention.dropout(context.share(self.dropouts.output));
        let is_observed = [query, key, value, output, up, down]
            .iter()
            .any(|layer| layer.is_observed());
        let attention = attention.first(context.tokens.filter(|_| !is_observed));
        let xs = attention.shortcut(xs).forward(xs)?;
        let mlp = Mlp::new(up, &self.act, down).dropout(context.share(self.dropouts.mlp));
        let ys = mlp.norm(attention_norm).shortcut_of_norm().forward(&xs)?;
        ys.apply(mlp_norm)
    }
}
