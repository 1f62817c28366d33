//! Rows of a table by index.

use super::{Compute, record, working};
use crate::kernels::buffer::{Cpu, tensor};
use crate::kernels::embedding::{add_columns, add_rows};
use crate::kernels::simd::Element;
use crate::profile;
use candle_core::{DType, Result, Tensor, bail};

/// The rows of `table` that `ids` name, as [`candle_nn::Embedding`] looks them up.
///
/// `ids` is an integer tensor of any shape with values below n, `table` (n, dim); the result is
/// (ids.., dim). A table that is a transposed matrix is read in place. The gradient of an untracked
/// table is not computed.
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
    let span = profile::forward("embedding");
    let (count, dim) = table.dims2()?;
    let mut shape = ids.dims().to_vec();
    shape.push(dim);
    // Candle takes an index of 255 in u8 for no row. Other dtypes have no such meaning.
    let ids = ids.flatten_all()?.contiguous()?;
    let ids = match ids.dtype() {
        DType::U32 | DType::I64 => ids,
        DType::U8 => ids.to_dtype(DType::U32)?,
        _ => ids.to_dtype(DType::I64)?,
    };
    let (dtype, device) = (table.dtype(), table.device().clone());
    let by_columns = !table.is_contiguous() && table.t()?.is_contiguous();
    let rows = if ids.elem_count() * dim == 0 {
        Tensor::zeros(shape, dtype, &device)?
    } else if by_columns {
        let columns = table.detach().t()?.index_select(&ids, 1)?;
        columns.t()?.contiguous()?.reshape(shape)?
    } else {
        let table = table.detach().contiguous()?;
        table.index_select(&ids, 0)?.reshape(shape)?
    };
    span.end([&rows].into_iter());
    record("embedding", [table], rows, move |grad, _| {
        // Sums of many half values are taken in the working precision.
        let grad = working(grad)?.reshape((ids.elem_count(), dim))?;
        let sums = match Compute::of(&grad) {
            Compute::F32 => on_cpu::<f32>(&ids, &grad, count, by_columns)?,
            Compute::F64 => on_cpu::<f64>(&ids, &grad, count, by_columns)?,
            Compute::Tensors => {
                let sums = Tensor::zeros((count, dim), grad.dtype(), &device)?;
                match grad.elem_count() {
                    0 => sums,
                    _ => sums.index_add(&ids, &grad, 0)?,
                }
            }
        };
        Ok([Some(sums.to_dtype(dtype)?)])
    })
}

/// The sums of the rows by their index, in the table's memory order.
fn on_cpu<T: Element>(
    ids: &Tensor,
    rows: &Tensor,
    count: usize,
    by_columns: bool,
) -> Result<Tensor> {
    // The lookup has checked that every index lies within the table.
    let ids: Vec<usize> = match ids.dtype() {
        DType::U32 => ids
            .to_vec1::<u32>()?
            .into_iter()
            .map(|id| id as usize)
            .collect(),
        _ => ids
            .to_vec1::<i64>()?
            .into_iter()
            .map(|id| id as usize)
            .collect(),
    };
    let dim = rows.dim(1)?;
    let mut sums = vec![T::ZERO; count * dim];
    let rows = Cpu::of(rows)?;
    if by_columns {
        add_columns(&mut sums, &rows, &ids, dim);
        tensor(sums, (dim, count))?.t()
    } else {
        add_rows(&mut sums, &rows, &ids, dim);
        tensor(sums, (count, dim))
    }
}
