//! What blocks of layers have in common: how they read norms and vectors, and what follows their layers.

use super::adapted::LinearParts;
use super::{affine, contiguous, dropout, norm, residual, working};
use crate::kernels::buffer::Cpu;
use crate::kernels::rows::{self, Shortcut};
use crate::kernels::simd::Element;
use candle_core::{DType, Result, Tensor, bail};

/// A normalisation over the last dimension, as the ops read it.
#[derive(Clone, Debug)]
pub struct NormParts {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) eps: f64,
    pub(crate) remove_mean: bool,
}

impl NormParts {
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        norm(
            xs,
            &self.weight,
            self.bias.as_ref(),
            self.eps,
            self.remove_mean,
        )
    }

    /// Whether the kernels read this norm of so many numbers.
    pub(super) fn fits(&self, dtype: DType, width: usize) -> bool {
        is_vector(Some(&self.weight), dtype, width) && is_vector(self.bias.as_ref(), dtype, width)
    }

    /// The same norm in the precision to compute in.
    pub(super) fn working(&self) -> Result<Self> {
        Ok(Self {
            weight: working(&self.weight)?,
            bias: self.bias.as_ref().map(working).transpose()?,
            ..*self
        })
    }

    /// Weight and bias, borrowed.
    pub(super) fn operands<T: Element>(&self) -> Result<NormOperands<'_, T>> {
        Ok(NormOperands {
            weight: Cpu::of(&self.weight)?,
            bias: self.bias.as_ref().map(Cpu::of).transpose()?,
            parts: self,
        })
    }
}

/// A norm's tensors, borrowed.
pub(super) struct NormOperands<'a, T> {
    weight: Cpu<'a, T>,
    bias: Option<Cpu<'a, T>>,
    parts: &'a NormParts,
}

impl<T: Element> NormOperands<'_, T> {
    pub(super) fn kernel(&self) -> rows::Norm<'_, T> {
        rows::Norm {
            weight: &self.weight,
            bias: self.bias.as_deref(),
            eps: self.parts.eps,
            remove_mean: self.parts.remove_mean,
        }
    }
}

/// Whether the kernels read this vector, if there is one: frozen, of this dtype and so many numbers.
pub(super) fn is_vector(tensor: Option<&Tensor>, dtype: DType, count: usize) -> bool {
    tensor.is_none_or(|tensor| {
        tensor.dims() == [count]
            && tensor.dtype() == dtype
            && !tensor.track_op()
            && tensor.is_contiguous()
    })
}

/// Whether the kernels read this layer: everything frozen but one update at most.
pub(super) fn is_layer(layer: &LinearParts, dtype: DType, inputs: usize, outputs: usize) -> bool {
    layer.weight.dims() == [outputs, inputs]
        && layer.weight.dtype() == dtype
        && inputs * outputs > 0
        && layer.fused().is_ok()
        && is_vector(layer.bias.as_ref(), dtype, outputs)
}

/// What follows the layers of a block: shortcut + gamma·drop(y).
#[derive(Clone, Debug, Default)]
pub(crate) struct Behind {
    /// Probability that a result is dropped.
    pub(crate) dropout: f64,
    pub(crate) gamma: Option<Tensor>,
    pub(crate) shortcut: Added,
}

/// What a block adds to its result.
#[derive(Clone, Debug, Default)]
pub(crate) enum Added {
    #[default]
    Nothing,
    /// The result of its norm; its input, if it has none.
    Normed,
    Tensor(Tensor),
}

impl Behind {
    /// Errors unless the probability is one.
    pub(crate) fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.dropout) {
            bail!(
                "the probability of dropout must be in 0..1, it is {}",
                self.dropout
            );
        }
        Ok(())
    }

    /// Whether the kernels compute this for a block from `xs` to so many numbers in place of the last
    /// dimension.
    pub(super) fn fits(&self, xs: &Tensor, outputs: usize) -> bool {
        let (dtype, dims) = (xs.dtype(), xs.dims());
        let fits = |shortcut: &Tensor| {
            let rest = dims.len() - 1;
            shortcut.dtype() == dtype
                && shortcut.rank() == dims.len()
                && shortcut.dims()[rest] == outputs
                && shortcut.dims()[..rest] == dims[..rest]
        };
        is_vector(self.gamma.as_ref(), dtype, outputs)
            && match &self.shortcut {
                Added::Nothing => true,
                Added::Normed => fits(xs),
                Added::Tensor(shortcut) => fits(shortcut),
            }
    }

    /// The same for so many first tokens, with the shortcut of all.
    pub(super) fn first(&self, tokens: usize) -> Result<Self> {
        Ok(Self {
            shortcut: match &self.shortcut {
                Added::Tensor(all) => Added::Tensor(contiguous(&all.narrow(1, 0, tokens)?)?),
                other => other.clone(),
            },
            ..self.clone()
        })
    }

    /// The shortcut that the kernels find within the block, or the tensor that is one.
    pub(super) fn shortcut(&self, xs: &Tensor) -> (Option<Shortcut>, Option<&Tensor>) {
        match &self.shortcut {
            Added::Nothing => (None, None),
            Added::Normed => (Some(Shortcut::Normed), None),
            // The gradient of both is added up in one pass.
            Added::Tensor(shortcut) if shortcut.id() == xs.id() => (Some(Shortcut::Input), None),
            Added::Tensor(shortcut) => (None, Some(shortcut)),
        }
    }

    /// The result, op by op, for the layers' result and the norm's.
    pub(super) fn composed(&self, ys: &Tensor, normed: &Tensor) -> Result<Tensor> {
        let ys = dropout::drop_values(ys, self.dropout)?;
        let shortcut = match &self.shortcut {
            Added::Nothing => None,
            Added::Normed => Some(normed),
            Added::Tensor(shortcut) => Some(shortcut),
        };
        let last = ys.rank().saturating_sub(1);
        match (shortcut, &self.gamma) {
            (Some(shortcut), gamma) => residual(shortcut, &ys, gamma.as_ref(), last),
            (None, Some(gamma)) => affine(&ys, gamma, None, last),
            (None, None) => Ok(ys),
        }
    }
}
