//! Causal attention with grouped queries.

use super::config::{DecoderConfig, LayerConfig, QkNorm};
use super::context::{Context, Turn};
use super::norm::Norm;
use super::source::{Source, linear};
use crate::LoraModel;
use crate::blocks::{AsLinear, Attention as Chain};
use crate::layers::QLinear;
use crate::ops;
use candle_core::Result;

/// The attention of a layer.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Attention {
    #[lora(flatten)]
    inputs: Inputs,
    o_proj: QLinear,
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
        q_proj: QLinear,
        k_proj: QLinear,
        #[lora(rank)]
        v_proj: QLinear,
    },
    Joined {
        #[lora(rank)]
        qkv_proj: QLinear,
    },
}

#[derive(Clone, Debug)]
struct Settings {
    layer: LayerConfig,
    heads: usize,
    scale: f64,
    cap: Option<f64>,
    dropout: f64,
}

impl Attention {
    pub(super) fn new(config: &DecoderConfig, layer: &LayerConfig, from: Source) -> Result<Self> {
        let (width, bias) = (config.hidden_size, config.biases);
        let (queries, keys) = (config.query_width(), config.key_width());
        let input = |name: &str, out| linear(width, out, bias.qkv, from.pp(name));
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
            Some(Norm::new(width, config, from.pp(name)))
        };
        Ok(Self {
            inputs,
            o_proj: linear(queries, width, bias.output, from.pp("o_proj"))?,
            q_norm: norm("q_norm", queries).transpose()?,
            k_norm: norm("k_norm", keys).transpose()?,
            settings: Settings {
                layer: layer.clone(),
                heads: queries / config.head_dim,
                scale: config.attention_multiplier,
                cap: config.attn_logit_softcapping,
                dropout: config.attention_dropout,
            },
        })
    }
}

#[lora::forward(also(Norm))]
impl Attention {
    /// The chain that runs as one node.
    pub(super) fn chain(&self, context: &Context) -> Chain<'_> {
        let settings = &self.settings;
        let mut core = context.limited(ops::Attention::new(settings.scale), &settings.layer);
        if let Some(cap) = settings.cap {
            core = core.soft_cap(cap);
        }
        if self.o_proj.in_training() {
            core = core.dropout(settings.dropout);
        }
        let (output, heads) = (&self.o_proj, settings.heads);
        let chain = match &self.inputs {
            Inputs::Apart {
                q_proj,
                k_proj,
                v_proj,
            } => Chain::new(q_proj, k_proj, v_proj, output, heads),
            Inputs::Joined { qkv_proj } => Chain::joined(qkv_proj, output, heads),
        };
        let chain = chain.core(core);
        let chain = chain.head_norms(self.q_norm.as_ref(), self.k_norm.as_ref());
        match context.turn(&settings.layer) {
            None => chain,
            Some(Turn { new, all: None }) => chain.rope(&new.cos, &new.sin),
            // Earlier keys turn by other angles now.
            Some(Turn {
                new,
                all: Some(all),
            }) => chain
                .rope(&new.cos, &new.sin)
                .rope_of_all_keys(&all.cos, &all.sin),
        }
    }
}
