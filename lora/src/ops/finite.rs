//! Whether values are finite.

use candle_core::{DType, Device, Result, Tensor};

/// True if no value is NaN or infinite.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool> {
    Ok(first_not_finite(&[tensor])?.is_none())
}

/// The place of the first tensor that holds NaN or infinity.
pub(crate) fn first_not_finite(tensors: &[&Tensor]) -> Result<Option<usize>> {
    let probes = tensors.iter().map(|tensor| probe(tensor));
    let probes: Vec<Tensor> = probes.collect::<Result<_>>()?;
    let Some(first) = probes.first() else {
        return Ok(None);
    };
    let alike = |probe: &Tensor| {
        probe.dtype() == first.dtype() && probe.device().same_device(first.device())
    };
    // Those of one device are read together: each read waits for the device.
    let values = match probes.iter().all(alike) {
        true => read(&Tensor::stack(&probes, 0)?)?,
        false => {
            let values = probes
                .iter()
                .map(|probe| Ok(read(&probe.unsqueeze(0)?)?[0]));
            values.collect::<Result<_>>()?
        }
    };
    Ok(values.iter().position(|value| value.is_nan()))
}

/// NaN, or 0 if all values are finite: 0 · x is NaN unless x is finite, and one NaN makes the whole
/// sum NaN.
fn probe(tensor: &Tensor) -> Result<Tensor> {
    let wide = match tensor.dtype() {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
    (tensor.detach().to_dtype(wide)? * 0.0)?.sum_all()
}

fn read(probes: &Tensor) -> Result<Vec<f64>> {
    // Not every device has f64.
    let probes = probes.to_device(&Device::Cpu)?;
    probes.to_dtype(DType::F64)?.to_vec1()
}
