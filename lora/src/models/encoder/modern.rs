//! ModernBERT's encoder proper: norms in front, rotary positions, gated MLPs, local attention,
//! <https://arxiv.org/abs/2412.13663>.

use super::config::{Dropouts, EncoderConfig, ModernBertConfig};
use super::context::Context;
use super::inputs::Inputs;
use super::table;
use crate::blocks::{Attention, Mlp};
use crate::layers::Recompute;
use crate::models::parts::{layer_norm, linear};
use crate::{LoraModel, ops};
use candle_core::{Result, Tensor, bail};
use candle_nn::{Activation, Embedding, LayerNorm, Linear, VarBuilder};

/// What ModernBERT has in front of a head.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Modern {
    #[lora(name = "embeddings.tok_embeddings")]
    words: Embedding,
    #[lora(name = "embeddings.norm")]
    norm: LayerNorm,
    layers: Vec<Recompute<Block>>,
    final_norm: LayerNorm,
}

/// A layer.
#[derive(Clone, Debug, LoraModel)]
struct Block {
    /// Missing in the first layer, whose input is normalised.
    attn_norm: Option<LayerNorm>,
    #[lora(rank, name = "attn.Wqkv")]
    qkv: Linear,
    #[lora(name = "attn.Wo")]
    output: Linear,
    mlp_norm: LayerNorm,
    #[lora(name = "mlp.Wi")]
    up: Linear,
    #[lora(name = "mlp.Wo")]
    down: Linear,
    act: Activation,
    heads: usize,
    #[lora(skip)]
    window: Option<usize>,
    #[lora(skip)]
    dropouts: Dropouts,
}

impl Modern {
    pub(super) fn new(
        config: &EncoderConfig,
        modern: &ModernBertConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        let width = config.hidden_size;
        let norm = |vb| layer_norm(width, modern.norm_bias, config.layer_norm_eps, vb);
        let blocks = modern.windows.iter().enumerate().map(|(index, &window)| {
            Block::new(config, modern, (index, window), vb.pp("layers").pp(index))
                .map(Recompute::new)
        });
        Ok(Self {
            words: table(config.vocab_size, width, vb.pp("embeddings.tok_embeddings"))?,
            norm: norm(vb.pp("embeddings.norm"))?,
            layers: blocks.collect::<Result<_>>()?,
            final_norm: norm(vb.pp("final_norm"))?,
        })
    }

    /// The weight that a head may share.
    pub(super) fn words(&self) -> &Tensor {
        self.words.embeddings()
    }
}

impl Block {
    fn new(
        config: &EncoderConfig,
        modern: &ModernBertConfig,
        (index, window): (usize, Option<usize>),
        vb: VarBuilder,
    ) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norm =
            |name: &str| layer_norm(width, modern.norm_bias, config.layer_norm_eps, vb.pp(name));
        let [attention, mlp] = [modern.attention_bias, modern.mlp_bias];
        Ok(Self {
            attn_norm: (index > 0).then(|| norm("attn_norm")).transpose()?,
            qkv: linear(width, 3 * width, attention, vb.pp("attn.Wqkv"))?,
            output: linear(width, width, attention, vb.pp("attn.Wo"))?,
            mlp_norm: norm("mlp_norm")?,
            up: linear(width, 2 * inner, mlp, vb.pp("mlp.Wi"))?,
            down: linear(inner, width, mlp, vb.pp("mlp.Wo"))?,
            act: config.hidden_act,
            heads: config.num_attention_heads,
            window,
            dropouts: config.dropouts,
        })
    }
}

#[lora::forward]
impl Modern {
    /// The last layer's output, normalised, (batch, time, hidden_size).
    pub(super) fn forward(
        &self,
        inputs: &Inputs<'_>,
        config: &EncoderConfig,
        context: &Context,
    ) -> Result<Tensor> {
        if inputs.types.is_some() {
            bail!("this model has no kinds of tokens: leave the token types out");
        }
        let xs = inputs.ids.contiguous()?.apply(&self.words)?;
        let mut xs = context.dropped(&xs.apply(&self.norm)?, config.dropouts.embeddings)?;
        for layer in &self.layers {
            xs = layer.forward_with(&xs, context, |layer, xs, context| {
                layer.forward(xs, context)
            })?;
        }
        xs.apply(&self.final_norm)
    }
}

#[lora::forward]
impl Block {
    fn forward(&self, xs: &Tensor, context: &Context) -> Result<Tensor> {
        let xs = self.with_attention(xs, context)?;
        self.with_mlp(&xs, context)
    }

    /// Norm, attention and shortcut.
    fn with_attention(&self, xs: &Tensor, context: &Context) -> Result<Tensor> {
        let sight = context.sight(self.window);
        let head_dim = xs.dim(2)? / self.heads;
        let core = context.attention(sight, head_dim, self.dropouts.attention);
        let attention = Attention::joined(&self.qkv, &self.output, self.heads).core(core);
        let attention = match &self.attn_norm {
            Some(norm) => attention.norm(norm),
            None => attention,
        };
        let attention = match &sight.turn {
            Some(turn) => {
                let (cos, sin) = turn.tables(xs.dtype())?;
                attention.rope(&cos, &sin)
            }
            None => attention,
        };
        let attention = attention.dropout(context.share(self.dropouts.output));
        attention.shortcut(xs).forward(xs)
    }

    /// Norm, MLP and shortcut.
    fn with_mlp(&self, xs: &Tensor, context: &Context) -> Result<Tensor> {
        let share = context.share(self.dropouts.mlp);
        if share == 0.0 {
            let mlp = Mlp::joined(&self.up, &self.act, &self.down);
            return mlp.norm(&self.mlp_norm).shortcut(xs).forward(xs);
        }
        // This dropout is before the last layer.
        let both = xs.apply(&self.mlp_norm)?.apply(&self.up)?;
        let inner = both.dim(2)? / 2;
        let ys = both.narrow(2, 0, inner)?.contiguous()?.apply(&self.act)?;
        let ys = (ys * both.narrow(2, inner, inner)?)?;
        let ys = context.dropped(&ys, share)?.apply(&self.down)?;
        ops::add(xs, &ys)
    }
}
