//! What all layers of a forward pass share.

use super::config::{EncoderConfig, ModernBertConfig};
use super::inputs::{Inputs, mask};
use crate::ops::{self, Attention};
use candle_core::{DType, Device, Result, Tensor};

/// Where the padding of one forward pass is, in ModernBERT the tables that turn queries and keys, and whether
/// the model is trained.
#[derive(Clone, Debug)]
pub(super) struct Context {
    train: bool,
    /// The head reads the first token of a text alone.
    first_alone: bool,
    /// How many tokens a layer computes; all if missing.
    pub(super) tokens: Option<usize>,
    /// Where the padding is; missing if there is none.
    mask: Option<Tensor>,
    pub(super) all: Sight,
    /// For the layers that see a window.
    pub(super) window: Option<Sight>,
}

/// Which tokens a token sees, and by which angles it turns.
#[derive(Clone, Debug)]
pub(super) struct Sight {
    /// How many tokens on either side; all if missing.
    window: Option<usize>,
    pub(super) turn: Option<Turn>,
}

/// Cosines and sines, (time, dim / 2).
#[derive(Clone, Debug)]
pub(super) struct Turn {
    cos: Tensor,
    sin: Tensor,
}

impl Context {
    pub(super) fn new(config: &EncoderConfig, inputs: &Inputs<'_>, train: bool) -> Result<Self> {
        let (_, time) = inputs.shape()?;
        let device = inputs.ids.device();
        let head_dim = config.hidden_size / config.num_attention_heads;
        let sight = |window: Option<usize>, theta: Option<f64>| {
            let turn = theta.map(|theta| Turn::new(theta, head_dim, time, device));
            Ok::<_, candle_core::Error>(Sight {
                window,
                turn: turn.transpose()?,
            })
        };
        let modern = config.modern.as_ref();
        let window = modern.and_then(window_of);
        let local = |window| sight(Some(window), modern.map(|modern| modern.local_rope_theta));
        Ok(Self {
            train,
            first_alone: false,
            tokens: None,
            mask: inputs
                .tokens()?
                .map(|rows| mask(&rows, device))
                .transpose()?,
            all: sight(None, modern.map(|modern| modern.global_rope_theta))?,
            window: window.map(local).transpose()?,
        })
    }

    /// The same for a head that reads the first token of a text alone.
    pub(super) fn for_first_token(mut self) -> Self {
        self.first_alone = true;
        self
    }

    /// The same for a layer, of which the last computes what the head reads.
    pub(super) fn of_layer(&self, is_last: bool) -> Self {
        Self {
            tokens: (is_last && self.first_alone).then_some(1),
            ..self.clone()
        }
    }

    /// The numbers, in training with this share dropped.
    pub(super) fn dropped(&self, xs: &Tensor, share: f64) -> Result<Tensor> {
        ops::dropout(xs, self.share(share) as f32)
    }

    /// The share that is dropped: none outside of training.
    pub(super) fn share(&self, share: f64) -> f64 {
        if self.train { share } else { 0.0 }
    }

    /// The attention of a layer in which a token sees this; in training this share is dropped.
    pub(super) fn attention(&self, sight: &Sight, head_dim: usize, dropout: f64) -> Attention {
        let attention = Attention::new((head_dim as f64).powf(-0.5)).dropout(self.share(dropout));
        let attention = match &self.mask {
            Some(mask) => attention.mask(mask),
            None => attention,
        };
        match sight.window {
            Some(window) => attention.window(window, window),
            None => attention,
        }
    }

    /// What a layer with this window sees.
    pub(super) fn sight(&self, window: Option<usize>) -> &Sight {
        match (window, &self.window) {
            (Some(_), Some(sight)) => sight,
            _ => &self.all,
        }
    }
}

/// The window of all layers that have one.
fn window_of(modern: &ModernBertConfig) -> Option<usize> {
    modern.windows.iter().copied().flatten().next()
}

impl Turn {
    fn new(theta: f64, dim: usize, time: usize, device: &Device) -> Result<Self> {
        let pairs = dim / 2;
        let frequency = |pair: usize| theta.powf(-2.0 * pair as f64 / dim as f64) as f32;
        let frequencies: Vec<f32> = (0..pairs).map(frequency).collect();
        // transformers computes angles in f32.
        let angles = |position: usize| {
            let frequencies = frequencies.iter();
            frequencies.map(move |f| f64::from(position as f32 * f))
        };
        let angles: Vec<f64> = (0..time).flat_map(angles).collect();
        let table = |of: fn(f64) -> f64| {
            let values = angles.iter().map(|&angle| of(angle)).collect();
            Tensor::from_vec(values, (time, pairs), device)
        };
        Ok(Self {
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
        })
    }

    /// Cosines and sines in this dtype.
    pub(super) fn tables(&self, dtype: DType) -> Result<(Tensor, Tensor)> {
        Ok((self.cos.to_dtype(dtype)?, self.sin.to_dtype(dtype)?))
    }
}
