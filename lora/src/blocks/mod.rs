//! Chains of layers that run as one node of the graph.
//!
//! One node costs less than one for each layer: the values between the layers stay in a core's
//! cache, and only what the backward pass needs is kept. [`Mlp`] and [`Attention`] are the chains that
//! most models spend their time in. The same code runs with base layers and with their LoRA
//! counterparts, so a model's forward pass under `#[lora::forward]` can use it for both.

mod attention;
mod mlp;

pub use attention::Attention;
pub use mlp::Mlp;

use crate::layers::{LoraLayerNorm, LoraLinear, LoraQLinear, LoraRmsNorm, QLinear};
use crate::ops::{LinearParts, NormParts};
use candle_core::Result;
use candle_nn::{LayerNorm, Linear, Module, RmsNorm};
use std::fmt::Debug;

/// A linear layer that blocks can run: [`Linear`], [`QLinear`] or their LoRA counterparts.
pub trait AsLinear: Module + Debug {
    /// Weight, bias and updates.
    #[doc(hidden)]
    fn as_linear(&self) -> Result<LinearParts>;

    /// Whether the layer is in training, so that dropout acts: never a base layer.
    #[doc(hidden)]
    fn in_training(&self) -> bool {
        false
    }

    /// Whether a calibration notes what the layer sees, which must then be all of it: never a base layer.
    #[doc(hidden)]
    fn is_observed(&self) -> bool {
        false
    }

    /// Whether the rows of a batch have adapters of their own in this layer, which then must see the
    /// batch as its first dimension: never in a base layer.
    #[doc(hidden)]
    fn differs_by_row(&self) -> bool {
        false
    }
}

impl AsLinear for Linear {
    fn as_linear(&self) -> Result<LinearParts> {
        Ok(LinearParts {
            weight: self.weight().clone(),
            blocks: None,
            bias: self.bias().cloned(),
            updates: Vec::new(),
            detour: None,
        })
    }
}

impl AsLinear for QLinear {
    fn as_linear(&self) -> Result<LinearParts> {
        self.parts()
    }
}

/// Implements [`AsLinear`] for layers with adapters.
macro_rules! adapted {
    ($($layer:ty),*) => {$(
        impl AsLinear for $layer {
            fn as_linear(&self) -> Result<LinearParts> {
                self.parts_of_forward()
            }

            fn in_training(&self) -> bool {
                self.adapters().training
            }

            fn is_observed(&self) -> bool {
                self.adapters().recorder.is_some()
            }

            fn differs_by_row(&self) -> bool {
                self.adapters().mixed_rows().is_some()
            }
        }
    )*};
}

adapted!(LoraLinear, LoraQLinear);

/// A normalisation over the last dimension that blocks can run: [`LayerNorm`], [`RmsNorm`] or their
/// LoRA counterparts.
pub trait AsNorm: Module + Debug {
    /// Weight, bias and settings.
    #[doc(hidden)]
    fn as_norm(&self) -> Result<NormParts>;
}

impl AsNorm for LayerNorm {
    fn as_norm(&self) -> Result<NormParts> {
        Ok(NormParts {
            weight: self.weight().clone(),
            bias: self.bias().cloned(),
            eps: self.eps(),
            remove_mean: self.remove_mean(),
        })
    }
}

impl AsNorm for RmsNorm {
    fn as_norm(&self) -> Result<NormParts> {
        self.clone().into_inner().as_norm()
    }
}

impl AsNorm for LoraLayerNorm {
    fn as_norm(&self) -> Result<NormParts> {
        Ok(self.parts_of_forward())
    }
}

impl AsNorm for LoraRmsNorm {
    fn as_norm(&self) -> Result<NormParts> {
        Ok(self.parts_of_forward())
    }
}
