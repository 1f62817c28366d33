//! What an attention is beside its queries, keys and values.

use super::Attention;
use super::visible::Visible;
use crate::kernels::attention::{self, Heads, Sizes};
use crate::kernels::buffer::CpuStrided;
use crate::kernels::dropout::Dropout;
use crate::kernels::matrix::Threads;
use crate::kernels::simd::Element;
use crate::ops::{dropout, wide};
use candle_core::{DType, Result, Tensor, bail};

/// An attention over queries and keys of known sizes, with its mask of dropped probabilities drawn.
pub(crate) struct Core {
    pub(crate) sizes: Sizes,
    pub(super) mask: Option<Tensor>,
    pub(super) visible: Visible,
    pub(super) dropout: Option<Dropout>,
    pub(super) scale: f64,
    pub(super) cap: Option<f64>,
}

impl Attention {
    /// The attention over queries and keys of these sizes, in this dtype.
    ///
    /// # Errors
    /// Those of [`Attention::forward`], but those of the shapes of its arguments.
    pub(crate) fn core(&self, sizes: Sizes, dtype: DType) -> Result<Core> {
        if !(0.0..1.0).contains(&self.dropout) {
            bail!(
                "attention: the dropout's probability must be in 0..1, it is {}",
                self.dropout
            );
        }
        if let Some(cap) = self.soft_cap
            && !(cap > 0.0 && cap.is_finite())
        {
            bail!("attention: the soft cap must be a positive number, it is {cap}");
        }
        let mask = self.mask.as_ref();
        Ok(Core {
            sizes,
            mask: mask
                .map(|mask| check_mask(mask, &sizes, dtype))
                .transpose()?,
            visible: Visible::new(self.causal, self.window, self.sequences.as_ref(), &sizes)?,
            dropout: dropout::mask(self.dropout),
            scale: self.scale,
            cap: self.soft_cap,
        })
    }
}

impl Core {
    /// The mask for [`kernel`](Self::kernel).
    pub(crate) fn mask<T: Element>(&self) -> Result<Option<CpuStrided<'_, T>>> {
        self.mask.as_ref().map(CpuStrided::of).transpose()
    }

    /// The kernel, on all threads, over queries, keys and values.
    pub(crate) fn kernel<'a, T: Element>(
        &'a self,
        [q, k, v]: [Heads<'a, T>; 3],
        mask: Option<&'a CpuStrided<'_, T>>,
    ) -> attention::Attention<'a, T> {
        attention::Attention {
            q,
            k,
            v,
            mask: mask.map(heads),
            sizes: self.sizes,
            visible: self.visible.by_kernels(),
            dropout: self.dropout,
            scale: self.scale,
            cap: self.cap,
            first: 0,
            threads: Threads::All,
        }
    }
}

pub(super) fn heads<'a, T: Element>(tensor: &'a CpuStrided<'_, T>) -> Heads<'a, T> {
    Heads {
        values: &tensor.values,
        steps: tensor.steps,
    }
}

/// The mask, broadcast to the shape of the scores and in their dtype.
pub(super) fn check_mask(mask: &Tensor, sizes: &Sizes, dtype: DType) -> Result<Tensor> {
    if !mask.dtype().is_float() {
        bail!(
            "sdpa: the mask is added to the scores and must be floating-point, it is {:?}",
            mask.dtype()
        );
    }
    let shape = (sizes.batch, sizes.heads, sizes.queries, sizes.keys);
    match mask.detach().to_dtype(wide(dtype))?.broadcast_as(shape) {
        Ok(mask) => Ok(mask),
        Err(_) => bail!(
            "sdpa: a mask of shape {:?} does not broadcast to {shape:?}",
            mask.dims()
        ),
    }
}
