//! Rows of a table by index.

use super::{record, working};
use candle_core::{Result, Tensor, bail};

/// The rows of `table` that `ids` name, as [`candle_nn::Embedding`] looks them up.
///
/// `ids` is an integer tensor of any shape with values below n, `table` (n, dim); the result is
/// (ids.., dim). The gradient of an untracked table is not computed.
///
/// # Errors
/// If an index is out of range or `ids` are not integers.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let table = Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &Device::Cpu)?;
/// let ids = Tensor::new(&[2u32, 0], &Device::Cpu)?;
/// let rows = lora::ops::embedding(&ids, &table)?;
/// assert_eq!(rows.to_vec2::<f32>()?, [[5., 6.], [1., 2.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    if !ids.dtype().is_int() {
        bail!(
            "embedding: indices must be integers, they are {:?}",
            ids.dtype()
        );
    }
    let (count, dim) = table.dims2()?;
    let mut shape = ids.dims().to_vec();
    shape.push(dim);
    let ids = ids.flatten_all()?.contiguous()?;
    let (dtype, device) = (table.dtype(), table.device().clone());
    let rows = if ids.elem_count() * dim == 0 {
        Tensor::zeros(shape, dtype, &device)?
    } else {
        table
            .detach()
            .contiguous()?
            .index_select(&ids, 0)?
            .reshape(shape)?
    };
    record("embedding", [table], rows, move |grad, _| {
        // Sums of many half values are taken in the working precision.
        let grad = working(grad)?.reshape((ids.elem_count(), dim))?;
        let mut sum = Tensor::zeros((count, dim), grad.dtype(), &device)?;
        if grad.elem_count() > 0 {
            sum = sum.index_add(&ids, &grad, 0)?;
        }
        Ok([Some(sum.to_dtype(dtype)?)])
    })
}
