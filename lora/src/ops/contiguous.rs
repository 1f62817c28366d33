//! Contiguous copies.

use super::record;
use crate::kernels::buffer::buffer;
use crate::kernels::transpose::Gather;
use crate::profile;
use candle_core::{CpuStorage, Device, Result, Storage, Tensor, WithDType};

/// The tensor in contiguous memory, as [`Tensor::contiguous`], with a faster copy where a CPU
/// tensor is permuted: between (batch, channels, height, width) and (batch, height, width, channels),
/// for one. A contiguous tensor is returned as it is.
///
/// # Errors
/// If memory of the device cannot be copied.
pub fn contiguous(xs: &Tensor) -> Result<Tensor> {
    if xs.is_contiguous() {
        return Ok(xs.clone());
    }
    let span = profile::forward("contiguous");
    let value = copy(&xs.detach())?;
    span.end([&value].into_iter());
    record("contiguous", [xs], value, |grad, _| {
        Ok([Some(grad.clone())])
    })
}

/// As [`contiguous`], for a tensor without a graph.
pub(crate) fn copy(xs: &Tensor) -> Result<Tensor> {
    if xs.is_contiguous() {
        return Ok(xs.clone());
    }
    match on_cpu(xs)? {
        Some(copy) => Ok(copy),
        None => xs.contiguous(),
    }
}

/// The copy by the CPU kernel, if it is made for the tensor.
fn on_cpu(xs: &Tensor) -> Result<Option<Tensor>> {
    let (storage, layout) = xs.storage_and_layout();
    let (Storage::Cpu(values), Some(gather)) =
        (&*storage, Gather::new(layout.dims(), layout.stride()))
    else {
        return Ok(None);
    };
    let (start, count) = (layout.start_offset(), xs.elem_count());
    fn tensor<T: WithDType>(
        gather: &Gather,
        from: &[T],
        mut to: Vec<T>,
        xs: &Tensor,
    ) -> Result<Option<Tensor>> {
        gather.copy(from, &mut to);
        Tensor::from_vec(to, xs.shape(), &Device::Cpu).map(Some)
    }
    match values {
        CpuStorage::F32(values) => tensor(&gather, &values[start..], buffer(count), xs),
        CpuStorage::F64(values) => tensor(&gather, &values[start..], buffer(count), xs),
        CpuStorage::BF16(values) => tensor(
            &gather,
            &values[start..],
            vec![Default::default(); count],
            xs,
        ),
        CpuStorage::F16(values) => tensor(
            &gather,
            &values[start..],
            vec![Default::default(); count],
            xs,
        ),
        _ => Ok(None),
    }
}
