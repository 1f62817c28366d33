//! A mixture of experts: a router sends each token to a few of many MLPs.

use super::config::{DecoderConfig, ExpertsConfig};
use super::mlp::Mlp;
use super::source::{Source, linear};
use crate::LoraModel;
use crate::layers::QLinear;
use crate::ops;
use candle_core::{D, DType, Result, Tensor};
use candle_nn::Module;

/// The router and the experts of a layer.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Experts {
    gate: QLinear,
    #[lora(routed)]
    experts: Vec<Mlp>,
    per_token: usize,
    sum_to_one: bool,
}

impl Experts {
    pub(super) fn new(
        config: &DecoderConfig,
        experts: &ExpertsConfig,
        from: Source,
    ) -> Result<Self> {
        let expert = |index: usize| {
            let from = from.pp("experts").pp(index);
            match experts.mixtral_names {
                true => Mlp::numbered(config, experts.intermediate_size, from),
                false => Mlp::apart(config, experts.intermediate_size, from),
            }
        };
        Ok(Self {
            gate: linear(config.hidden_size, experts.count, false, from.pp("gate"))?,
            experts: (0..experts.count).map(expert).collect::<Result<_>>()?,
            per_token: experts.per_token,
            sum_to_one: experts.norm_topk_prob,
        })
    }
}

#[lora::forward]
impl Experts {
    /// The weights of each token's experts, and which experts these are, both (tokens, per_token).
    /// Half types would round scores to ties: the choice is made in f32.
    fn route(&self, xs: &Tensor) -> Result<(Tensor, Tensor)> {
        let scores = xs.apply(&self.gate)?.flatten_to(D::Minus2)?;
        let scores = match scores.dtype() {
            DType::F64 => scores,
            _ => scores.to_dtype(DType::F32)?,
        };
        let (weights, chosen) = ops::top_k(&ops::softmax_last_dim(&scores)?, self.per_token)?;
        let weights = match self.sum_to_one {
            true => weights.broadcast_div(&weights.sum_keepdim(1)?)?,
            false => weights,
        };
        Ok((weights.to_dtype(xs.dtype())?, chosen))
    }
}

#[lora::forward]
impl Module for Experts {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (weights, chosen) = self.route(xs)?;
        let weights = weights.flatten_all()?;
        let tokens = xs.flatten_to(D::Minus2)?;
        let mut sum = tokens.zeros_like()?;
        let turns = turns(&chosen.to_vec2()?, self.experts.len());
        for (
            expert,
            Turns {
                tokens: rows,
                places,
            },
        ) in self.experts.iter().zip(turns)
        {
            if rows.is_empty() {
                continue;
            }
            let rows = Tensor::new(rows, xs.device())?;
            let places = Tensor::new(places, xs.device())?;
            // As a batch of one: an adapter for each row of a batch must not take tokens for rows.
            let xs = tokens.index_select(&rows, 0)?.unsqueeze(0)?;
            let ys = expert.forward(&xs)?.squeeze(0)?;
            let weights = weights.index_select(&places, 0)?.unsqueeze(1)?;
            sum = sum.index_add(&rows, &ys.broadcast_mul(&weights)?, 0)?;
        }
        sum.reshape(xs.shape())
    }
}

/// The tokens of an expert, and the places of its weights among those of all tokens.
#[derive(Clone, Default)]
struct Turns {
    tokens: Vec<u32>,
    places: Vec<u32>,
}

fn turns(chosen: &[Vec<u32>], experts: usize) -> Vec<Turns> {
    let mut turns = vec![Turns::default(); experts];
    let mut place = 0;
    for (token, experts) in (0..).zip(chosen) {
        for &expert in experts {
            let turns = &mut turns[expert as usize];
            turns.tokens.push(token);
            turns.places.push(place);
            place += 1;
        }
    }
    turns
}
