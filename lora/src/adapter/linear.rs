//! What a linear layer does beside its product and its updates, which the ops need not know of:
//! trained rows at a head, a calibration's notes, an adapter for each row of a batch.

use super::{Adapted, Recorder, Tokens, by_rows, updates};
use crate::ops::{self, Detour, LinearParts};
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// A linear layer as its forward pass computes it, with this weight, (out, in).
pub(crate) fn linear_parts<L: Adapted + Clone>(
    layer: &L,
    weight: Tensor,
    parts: impl Fn(&L) -> Result<LinearParts>,
) -> Result<LinearParts> {
    let adapters = layer.adapters();
    let beside = Beside {
        tokens: adapters.tokens_to_compute().collect(),
        recorder: adapters.recorder.clone(),
        rows: adapters.row_parts(layer, parts)?,
    };
    Ok(LinearParts {
        weight,
        bias: layer.bias().map(|bias| adapters.seen(bias)),
        updates: updates::updates(layer)?,
        detour: beside.detour(),
    })
}

#[derive(Debug)]
struct Beside {
    /// At a head: rows of the weight that others stand in place of.
    tokens: Vec<Tokens>,
    /// Where inputs are noted.
    recorder: Option<Recorder>,
    /// In a mixed batch: the rows that each of these layers computes, in place of this one.
    rows: Vec<(Vec<u32>, LinearParts)>,
}

impl Beside {
    fn detour(self) -> Option<Arc<dyn Detour>> {
        let is_plain = self.tokens.is_empty() && self.recorder.is_none() && self.rows.is_empty();
        (!is_plain).then(|| Arc::new(self) as Arc<dyn Detour>)
    }
}

impl Detour for Beside {
    fn forward(&self, xs: &Tensor, layer: &LinearParts) -> Result<Tensor> {
        if !self.rows.is_empty() {
            return by_rows(xs, &self.rows, |layer, xs| ops::adapted_linear(xs, layer));
        }
        if let Some(recorder) = &self.recorder {
            recorder.observe(xs)?;
        }
        if self.tokens.is_empty() {
            return layer.composed(xs, |xs, bias| ops::linear(xs, &layer.weight, bias));
        }
        layer.composed(xs, |xs, bias| {
            let ys = ops::linear(xs, &layer.weight, None)?;
            let mut tokens = self.tokens.iter();
            let ys = tokens.try_fold(ys, |ys, tokens| tokens.after_head(xs, &ys))?;
            match bias {
                Some(bias) => ys.broadcast_add(bias),
                None => Ok(ys),
            }
        })
    }
}
