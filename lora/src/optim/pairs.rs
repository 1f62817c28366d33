//! The two matrices of each adapter, and the matrices that precondition their gradients.
//!
//! All that the optimisers know of adapters goes through here.

use super::inverse;
use crate::adapter::Access;
use crate::adapter::wider;
use crate::manage::tie::retie;
use crate::path::join;
use crate::traits::{each_layer, each_layer_mut};
use crate::{LoraModule, Part, Result, Role};
use candle_core::{DType, Tensor};

/// A and B of one adapter in one layer.
#[derive(Debug)]
pub(super) struct Pair {
    /// Path of the layer.
    pub layer: String,
    /// Name of the adapter.
    pub adapter: String,
    pub a: Tensor,
    pub b: Tensor,
    pub scaling: f64,
    /// Number of experts that have rows of A and columns of B each.
    experts: usize,
    /// True if both are matrices of a linear layer.
    pub linear: bool,
}

/// The pairs of every layer and adapter, trained or not.
pub(super) fn pairs<M: LoraModule>(model: &M) -> Vec<Pair> {
    let mut pairs = Vec::new();
    each_layer(model, |path, layer| {
        let Some(adapted) = layer.adapted() else {
            return;
        };
        let is_matrix = |tensor: &Tensor| tensor.dims().len() == 2;
        for adapter in adapted.adapters().iter() {
            let (a, b) = (adapter.a().clone(), adapter.b().clone());
            pairs.push(Pair {
                layer: path.into(),
                adapter: adapter.name().into(),
                linear: !adapted.is_lookup() && is_matrix(&a) && is_matrix(&b),
                scaling: adapter.scaling(),
                experts: adapted.form().experts(),
                a,
                b,
            });
        }
    });
    pairs
}

/// Freezes every matrix A: no gradient is computed for A any more. The values stay.
pub(super) fn freeze_a<M: LoraModule>(model: &mut M) -> Result<()> {
    each_layer_mut(model, |_, layer| {
        for param in layer.params_mut(Access::new()) {
            if param.role == Role::Adapter(Part::A) && param.tensor.is_variable() {
                *param.tensor = param.tensor.detach();
            }
        }
    });
    // The B of a tied head is a view of its embedding's A, and must follow it.
    retie(model)
}

impl Pair {
    /// For messages: `fc1, adapter default`.
    pub fn name(&self) -> String {
        let layer = join("layer", &self.layer);
        format!("{layer}, adapter {}", self.adapter)
    }

    /// (A·Aᵀ + damping)⁻¹, of shape (groups, k, k): one for each group of a convolution.
    pub fn inverse_of_a(&self, damping: f64) -> Result<Tensor> {
        let a = self.a_blocks(&self.a)?;
        inverse::damped(&a.matmul(&a.t()?)?, damping)
    }

    /// (Bᵀ·B + damping)⁻¹, of shape (groups, k, k).
    pub fn inverse_of_b(&self, damping: f64) -> Result<Tensor> {
        let b = self.b_blocks(&self.b)?;
        inverse::damped(&b.t()?.matmul(&b)?, damping)
    }

    /// The gradient of A, multiplied by this matrix from the left.
    pub fn precondition_a(&self, grad: &Tensor, inverse: &Tensor) -> Result<Tensor> {
        let product = inverse.matmul(&self.a_blocks(grad)?)?;
        Ok(product.reshape(grad.shape())?.to_dtype(grad.dtype())?)
    }

    /// The gradient of B, multiplied by this matrix from the right.
    pub fn precondition_b(&self, grad: &Tensor, inverse: &Tensor) -> Result<Tensor> {
        let mut product = self.b_blocks(grad)?.matmul(inverse)?;
        if self.experts > 1 {
            product = product.permute((1, 2, 0))?.contiguous()?;
        }
        Ok(product.reshape(grad.shape())?.to_dtype(grad.dtype())?)
    }

    /// A tensor of A's shape, (r, in, ..), as (groups, r / groups, in · ..), in at least f32.
    fn a_blocks(&self, tensor: &Tensor) -> Result<Tensor> {
        let (groups, k) = self.blocks()?;
        let blocks = wide(tensor)?.reshape((groups, k, ()))?;
        Ok(blocks)
    }

    /// A tensor of B's shape, (out, r / groups, ..), as (groups, out / groups, r / groups), in at
    /// least f32.
    fn b_blocks(&self, tensor: &Tensor) -> Result<Tensor> {
        let (groups, k) = self.blocks()?;
        let blocks = wide(tensor)?;
        if self.experts > 1 {
            // The experts' columns take turns in B.
            let blocks = blocks.reshape(((), k, groups))?;
            return Ok(blocks.permute((2, 0, 1))?.contiguous()?);
        }
        Ok(blocks.reshape((groups, (), k))?)
    }

    /// The number of blocks, and the rank in each: the groups of a convolution, the experts, else
    /// 1.
    fn blocks(&self) -> Result<(usize, usize)> {
        let k = self.b.dim(1)?;
        Ok(match self.experts {
            1 => (self.a.dim(0)? / k.max(1), k),
            experts => (experts, k / experts.max(1)),
        })
    }
}

fn wide(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.detach().contiguous()?;
    Ok(tensor.to_dtype(wider(tensor.dtype(), DType::F32))?)
}
