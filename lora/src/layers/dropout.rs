//! Dropout between layers.

use crate::{Builder, Cursor, CursorMut, LoraModel, LoraModule, Result, ops};
use candle_core::{ModuleT, Tensor};
use candle_nn::Dropout;

/// A [`Dropout`] that draws from the seed of [`seed_dropout`](crate::seed_dropout), so that training can
/// be repeated and resumed. As candle's, it acts where the model's code says `train`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraDropout {
    drop_p: f32,
}

impl LoraDropout {
    /// Drops numbers with this probability, in `0.0..1.0`.
    pub fn new(drop_p: f32) -> Self {
        Self { drop_p }
    }

    /// The input with numbers dropped, or as it is unless `train`.
    ///
    /// # Errors
    /// If the probability is outside of `0.0..1.0`.
    pub fn forward(&self, xs: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        match train {
            true => ops::dropout(xs, self.drop_p),
            false => Ok(xs.clone()),
        }
    }
}

impl ModuleT for LoraDropout {
    fn forward_t(&self, xs: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        self.forward(xs, train)
    }
}

impl LoraModel for Dropout {
    type Lora = LoraDropout;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraDropout> {
        let drop_p = probability(self).ok_or_else(|| {
            let message = "candle's Dropout does not tell its probability: use layers::LoraDropout";
            crate::Error::layer(cx.path(), message)
        })?;
        Ok(LoraDropout { drop_p })
    }
}

impl LoraModule for LoraDropout {
    type Base = Dropout;

    fn to_base(&self) -> Result<Dropout> {
        Ok(Dropout::new(self.drop_p))
    }

    fn visit(&self, _: &mut Cursor<'_>) {}

    fn visit_mut(&mut self, _: &mut CursorMut<'_>) {}
}

/// The probability of candle's layer, which has no other way to tell: `Dropout { drop_p: 0.1 }`.
fn probability(dropout: &Dropout) -> Option<f32> {
    let shown = format!("{dropout:?}");
    let (_, value) = shown.split_once("drop_p: ")?;
    value.trim_end_matches([' ', '}']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candles_layer_tells_its_probability() {
        for drop_p in [0.0, 0.1, 0.5, 1e-8, 0.999_999] {
            assert_eq!(probability(&Dropout::new(drop_p)), Some(drop_p));
        }
    }
}
