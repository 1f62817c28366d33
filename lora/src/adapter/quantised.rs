//! A layer whose weight is quantised, in GGML's blocks.
//!
//! The layer's weight is a *stand-in* then: a tensor of the weight's shape, dtype and device that takes
//! no memory. So whatever asks for these, or for the tensor's identity, need not know of the blocks.
//! The stand-in's values are NaN: whoever computes with them by mistake is found out.

use super::{Adapted, AdaptedMut, Adapter, Form, dora};
use crate::Result;
use crate::kernels::quantised::Blocks;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// Numbers of a weight that are dequantised at a time.
const PART: usize = 1 << 20;

/// What stands for a weight in these blocks, in the dtype that the layer computes in.
pub(crate) fn stand_in(blocks: &QTensor, dtype: DType) -> Result<Tensor> {
    let nothing = Tensor::full(f32::NAN, (), &blocks.device())?;
    Ok(nothing.to_dtype(dtype)?.broadcast_as(blocks.shape())?)
}

/// The tensor in another dtype. A stand-in still takes no memory.
pub(crate) fn cast(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    let is_single = tensor.elem_count() > 1 && tensor.stride().iter().all(|&step| step == 0);
    if !is_single {
        return Ok(tensor.to_dtype(dtype)?);
    }
    let mut single = tensor.clone();
    while single.rank() > 0 {
        single = single.get(0)?;
    }
    Ok(single.to_dtype(dtype)?.broadcast_as(tensor.shape())?)
}

/// The layer's weight, dequantised where it is quantised. While adapters are merged, this is the
/// merged weight.
pub(crate) fn values(layer: &dyn Adapted) -> Result<Tensor> {
    in_full(layer.adapters().blocks.as_deref(), layer.weight())
}

/// As [`values`], without merged adapters.
pub(crate) fn unmerged_values(layer: &dyn Adapted) -> Result<Tensor> {
    let blocks = layer.adapters().unmerged_blocks();
    in_full(blocks.map(|blocks| &**blocks), layer.unmerged_weight())
}

/// As [`unmerged_values`]; a quantised weight is in f32, whatever dtype the layer computes in, so that a sum
/// of it is rounded once.
pub(crate) fn exact_values(layer: &dyn Adapted) -> Result<Tensor> {
    let weight = layer.unmerged_weight();
    match layer.adapters().unmerged_blocks() {
        Some(blocks) => Ok(blocks.dequantize(weight.device())?),
        None => Ok(weight.clone()),
    }
}

fn in_full(blocks: Option<&QTensor>, weight: &Tensor) -> Result<Tensor> {
    Ok(match blocks {
        Some(blocks) => {
            let values = blocks.dequantize(weight.device())?;
            values.to_dtype(weight.dtype())?
        }
        None => weight.clone(),
    })
}

/// Puts these blocks in the place of the layer's weight.
pub(crate) fn put(layer: &mut dyn Adapted, blocks: Arc<QTensor>, stand_in: Tensor) {
    *layer.weight_mut() = stand_in;
    layer.adapters_mut().blocks = Some(blocks);
}

/// Puts other blocks in the place of a quantised layer's, for good.
pub(crate) fn replace(layer: &mut dyn Adapted, blocks: &Arc<QTensor>) -> Result<()> {
    let weight = layer.weight();
    let blocks = to_device(blocks, weight.device())?;
    let stand_in = stand_in(&blocks, weight.dtype())?;
    put(layer, blocks, stand_in);
    Ok(())
}

/// The weight in blocks of this type, and the relative error that it has then.
pub(crate) fn quantise(weight: &Tensor, dtype: GgmlDType) -> Result<(Arc<QTensor>, f64)> {
    let weight = weight.detach().to_dtype(DType::F32)?;
    let blocks = QTensor::quantize(&weight.contiguous()?, dtype)?;
    let norm = |tensor: Tensor| -> Result<f64> {
        let sum = tensor.sqr()?.sum_all()?.to_scalar::<f32>()?;
        Ok(f64::from(sum).sqrt())
    };
    let error = norm((blocks.dequantize(weight.device())? - &weight)?)?;
    let size = norm(weight)?;
    let error = if size > 0.0 { error / size } else { 0.0 };
    Ok((Arc::new(blocks), error))
}

/// The same blocks on a device.
pub(crate) fn to_device(blocks: &Arc<QTensor>, device: &Device) -> Result<Arc<QTensor>> {
    if blocks.device().same_device(device) {
        return Ok(blocks.clone());
    }
    let (dtype, shape) = (blocks.dtype(), blocks.shape().clone());
    let storage = QStorage::from_data(blocks.data()?, device, dtype)?;
    Ok(Arc::new(QTensor::new(storage, shape)?))
}

/// The norm of each output's weights in W, or in W + s·B·A, part by part.
pub(crate) fn norms(
    blocks: &QTensor,
    form: Form,
    adapter: Option<&Adapter>,
    wide: DType,
) -> Result<Tensor> {
    let (count, width) = blocks.shape().dims2()?;
    let dim = form.output_dim();
    let mut parts = Vec::new();
    let size = (PART / width.max(1)).max(1);
    for first in (0..count).step_by(size) {
        let rows = size.min(count - first);
        let mut sum = part(blocks, first, rows)?.to_dtype(wide)?;
        if let Some(adapter) = adapter {
            let (a, b) = match dim {
                0 => (adapter.a.clone(), adapter.b.narrow(0, first, rows)?),
                _ => (adapter.a.narrow(1, first, rows)?, adapter.b.clone()),
            };
            sum = (sum + form.delta(&a, &b, adapter.scaling())?.to_dtype(wide)?)?;
        }
        parts.push(dora::norms(&sum, dim)?);
    }
    if dim == 0 {
        return Ok(Tensor::cat(&parts, 0)?);
    }
    let mut squares = Tensor::zeros(width, wide, &blocks.device())?;
    for part in parts {
        squares = (squares + part.sqr()?)?;
    }
    Ok(squares.sqrt()?)
}

/// Some rows of the weight.
fn part(blocks: &QTensor, first: usize, rows: usize) -> Result<Tensor> {
    let device = blocks.device();
    if !device.is_cpu() {
        let full = blocks.dequantize(&device)?;
        return Ok(full.narrow(0, first, rows)?);
    }
    let values = Blocks::of(blocks)?.rows(first..first + rows);
    Ok(Tensor::from_vec(
        values,
        (rows, blocks.shape().dims()[1]),
        &device,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stand_in_takes_no_memory_in_any_dtype() -> Result<()> {
        let weight = Tensor::ones((6, 32), DType::F32, &Device::Cpu)?;
        let (blocks, error) = quantise(&weight, GgmlDType::Q8_0)?;
        assert!(error < 1e-3, "{error}");
        let stand_in = stand_in(&blocks, DType::F32)?;
        for tensor in [stand_in.clone(), cast(&stand_in, DType::BF16)?] {
            assert_eq!(
                (tensor.dims(), tensor.stride()),
                (&[6, 32][..], &[0, 0][..])
            );
            let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            assert!(values.iter().all(|value| value.is_nan()));
        }
        assert_eq!(cast(&weight, DType::F64)?.stride(), [32, 1]);
        Ok(())
    }
}
