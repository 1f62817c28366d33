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
            // One batch of all tokens: an adapter for each row of a batch must not take tokens for rows.
            let batch = match expert.differs_by_row() {
                true => xs.dim(0)?,
                false => 1,
            };
            let by_row = by_rows(&rows, (batch, tokens.dim(0)? / batch));
            let of = Tensor::new(by_row.tokens, xs.device())?;
            let ys = tokens.index_select(&of, 0)?;
            let ys = ys.reshape((batch, (), tokens.dim(1)?))?;
            let ys = expert.forward(&ys)?.flatten_to(1)?;
            let ys = match batch {
                1 => ys,
                _ => ys.index_select(&Tensor::new(by_row.places, xs.device())?, 0)?,
            };
            let rows = Tensor::new(rows, xs.device())?;
            let places = Tensor::new(places, xs.device())?;
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

/// An expert's tokens by the rows of the batch, as many places for each row.
struct ByRow {
    /// The token at each place; any where a row has fewer tokens.
    tokens: Vec<u32>,
    /// The place of each token.
    places: Vec<u32>,
}

/// The places of these tokens, in order, of a batch of so many rows and tokens in a row.
fn by_rows(tokens: &[u32], (batch, time): (usize, usize)) -> ByRow {
    let mut rows = vec![Vec::new(); batch];
    for &token in tokens {
        rows[token as usize / time.max(1)].push(token);
    }
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    let starts = (0..).step_by(width.max(1));
    let places = starts
        .zip(&rows)
        .flat_map(|(start, row)| (start..).take(row.len()));
    let padded = |row: &Vec<u32>| {
        let rest = width - row.len();
        let filled = row.iter().copied().chain(std::iter::repeat_n(0, rest));
        filled.collect::<Vec<u32>>()
    };
    ByRow {
        places: places.collect(),
        tokens: rows.iter().flat_map(padded).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stand_in_the_rows_of_their_batch() {
        let ByRow { tokens, places } = by_rows(&[1, 2, 8, 9, 11], (4, 3));
        assert_eq!(tokens, [1, 2, 0, 0, 8, 0, 9, 11]);
        assert_eq!(places, [0, 1, 4, 6, 7]);
        let all = by_rows(&[1, 2, 8], (1, 12));
        assert_eq!((all.tokens, all.places), (vec![1, 2, 8], vec![0, 1, 2]));
    }
}
