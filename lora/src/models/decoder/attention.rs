//! Causal attention with grouped queries.

use super::config::{DecoderConfig, LayerConfig, QkNorm};
use super::context::{Context, Turn};
use super::norm::Norm;
use crate::LoraModel;
use crate::blocks::AsLinear;
use crate::models::parts::{attend, linear};
use crate::ops::{self, KvCache};
use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder};

/// The attention of a layer.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Attention {
    #[lora(flatten)]
    inputs: Inputs,
    o_proj: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    #[lora(skip)]
    settings: Settings,
}

/// The layers that make queries, keys and values.
#[derive(Clone, Debug, LoraModel)]
enum Inputs {
    Apart {
        #[lora(rank)]
        q_proj: Linear,
        k_proj: Linear,
        #[lora(rank)]
        v_proj: Linear,
    },
    Joined {
        #[lora(rank)]
        qkv_proj: Linear,
    },
}

#[derive(Clone, Debug)]
struct Settings {
    layer: LayerConfig,
    head_dim: usize,
    /// The width of all query heads, and of all key heads.
    widths: [usize; 2],
    scale: f64,
    cap: Option<f64>,
    dropout: f64,
}

impl Attention {
    pub(super) fn new(config: &DecoderConfig, layer: &LayerConfig, vb: VarBuilder) -> Result<Self> {
        let (width, bias) = (config.hidden_size, config.biases);
        let (queries, keys) = (config.query_width(), config.key_width());
        let input = |name: &str, out| linear(width, out, bias.qkv, vb.pp(name));
        let inputs = match config.joined {
            true => Inputs::Joined {
                qkv_proj: input("qkv_proj", queries + 2 * keys)?,
            },
            false => Inputs::Apart {
                q_proj: input("q_proj", queries)?,
                k_proj: input("k_proj", keys)?,
                v_proj: input("v_proj", keys)?,
            },
        };
        let norm = |name: &str, width: usize| {
            let width = match config.qk_norm? {
                QkNorm::Head => config.head_dim,
                QkNorm::Width => width,
            };
            Some(Norm::new(width, config, vb.pp(name)))
        };
        Ok(Self {
            inputs,
            o_proj: linear(queries, width, bias.output, vb.pp("o_proj"))?,
            q_norm: norm("q_norm", queries).transpose()?,
            k_norm: norm("k_norm", keys).transpose()?,
            settings: Settings {
                layer: layer.clone(),
                head_dim: config.head_dim,
                widths: [queries, keys],
                scale: config.attention_multiplier,
                cap: config.attn_logit_softcapping,
                dropout: config.attention_dropout,
            },
        })
    }
}

#[lora::forward(also(Norm))]
impl Attention {
    /// From (batch, time, hidden_size) to the same.
    pub(super) fn forward(
        &self,
        xs: &Tensor,
        context: &Context,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let settings = &self.settings;
        let (q, k, v) = self.inputs.forward(xs, settings.widths)?;
        let q = self.heads(&q, self.q_norm.as_ref())?;
        let k = self.heads(&k, self.k_norm.as_ref())?;
        let v = self.heads(&v, None)?;
        let turn = context.turn(&settings.layer);
        let q = match turn {
            Some(turn) => turn.new.turn(&q)?,
            None => q,
        };
        let (k, v) = extended(k, v, turn, cache)?;
        let mut attention = context.limited(ops::Attention::new(settings.scale), &settings.layer);
        if let Some(cap) = settings.cap {
            attention = attention.soft_cap(cap);
        }
        if self.o_proj.in_training() {
            attention = attention.dropout(settings.dropout);
        }
        attend(&attention, [&q, &k, &v])?.apply(&self.o_proj)
    }

    /// From (batch, time, width) to (batch, heads, time, head_dim). The norm is over as many numbers
    /// as it has weights: over each head, or over all together.
    fn heads(&self, xs: &Tensor, norm: Option<&Norm>) -> Result<Tensor> {
        let (batch, time, width) = xs.dims3()?;
        let xs = match norm {
            Some(norm) => {
                let parts = width / norm.width();
                norm.forward(&xs.reshape((batch, time, parts, norm.width()))?)?
            }
            None => xs.clone(),
        };
        let dim = self.settings.head_dim;
        xs.reshape((batch, time, width / dim, dim))?.transpose(1, 2)
    }
}

#[lora::forward]
impl Inputs {
    /// Queries, keys and values, (batch, time, width).
    fn forward(
        &self,
        xs: &Tensor,
        [queries, keys]: [usize; 2],
    ) -> Result<(Tensor, Tensor, Tensor)> {
        match self {
            Self::Apart {
                q_proj,
                k_proj,
                v_proj,
            } => Ok((xs.apply(q_proj)?, xs.apply(k_proj)?, xs.apply(v_proj)?)),
            Self::Joined { qkv_proj } => {
                let all = xs.apply(qkv_proj)?;
                let part = |start, width| all.narrow(2, start, width)?.contiguous();
                let (q, k) = (part(0, queries)?, part(queries, keys)?);
                Ok((q, k, part(queries + keys, keys)?))
            }
        }
    }
}

/// The turned keys and the values of all positions so far.
fn extended(
    k: Tensor,
    v: Tensor,
    turn: Option<&Turn>,
    cache: Option<&mut KvCache>,
) -> Result<(Tensor, Tensor)> {
    let append = |k: Tensor, v: Tensor| match cache {
        Some(cache) => cache.append(&k, &v),
        None => Ok((k, v)),
    };
    match turn {
        None => append(k, v),
        Some(Turn { new, all: None }) => append(new.turn(&k)?, v),
        // Earlier keys turn by other angles now.
        Some(Turn { all: Some(all), .. }) => {
            let (k, v) = append(k, v)?;
            Ok((all.turn(&k)?, v))
        }
    }
}
