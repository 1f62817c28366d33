//! What a linear layer does beside its product and its updates: trained rows at a head, a
//! calibration's notes, an adapter for each row of a batch. The ops need not know of these.

use super::{Adapted, Recorder, Tokens, by_rows, updates};
use crate::ops::{self, Blocks, Detour, LinearParts};
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// The parts of a linear layer for its forward pass, with this weight, (out, in). `parts` gives the
/// parts of the layer's variants in a mixed batch.
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
    let blocks = adapters.blocks.clone().map(|tensor| Blocks {
        tensor,
        is_exact: adapters.training,
    });
    Ok(LinearParts {
        weight,
        blocks,
        bias: layer.bias().map(|bias| adapters.seen(bias)),
        updates: updates::updates(layer)?,
        detour: beside.detour(),
    })
}

/// What a forward pass does beside the product and the updates.
#[derive(Debug)]
struct Beside {
    /// At a head: the trained rows, which stand in place of rows of the weight.
    tokens: Vec<Tokens>,
    /// In a calibration: notes the inputs.
    recorder: Option<Recorder>,
    /// In a mixed batch: layers that compute in place of this one, each with the batch's rows that
    /// it computes.
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
        // In a mixed batch the layers of the groups do all that follows, each for its own rows.
        if !self.rows.is_empty() {
            return by_rows(xs, &self.rows, |layer, xs| ops::adapted_linear(xs, layer));
        }
        if let Some(recorder) = &self.recorder {
            recorder.observe(xs)?;
        }
        if self.tokens.is_empty() {
            return layer.composed(xs, |xs, bias| layer.product(xs, bias));
        }
        layer.composed(xs, |xs, bias| {
            let ys = layer.product(xs, None)?;
            // Before the bias: a trained row replaces a row of the weight, not a value of the bias.
            let mut tokens = self.tokens.iter();
            let ys = tokens.try_fold(ys, |ys, tokens| tokens.after_head(xs, &ys))?;
            match bias {
                Some(bias) => ys.broadcast_add(bias),
                None => Ok(ys),
            }
        })
    }
}
