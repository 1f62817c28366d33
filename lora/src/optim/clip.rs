//! Bounds on the gradients.

use super::trained::{Trained, trained};
use crate::adapter::wider;
use crate::{Error, LoraModule, Result, ops};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};

/// Scales the gradients of the trained parameters down so that their joint norm, the root of the
/// sum of all squares, is at most `max_norm`. Returns the norm before.
///
/// As PyTorch's `clip_grad_norm_`: the factor is max_norm / (norm + 10⁻⁶).
///
/// # Errors
/// Lists the parameters whose gradients hold NaN or infinity; all gradients then stay as they were.
/// An invalid `max_norm` is an error too.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::Linear;
/// use lora::optim::clip_grad_norm;
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// let weight = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
/// let model = Linear::new(weight, None).to_lora(&LoraConfig::new(2))?;
/// let input = Tensor::ones((1, 3), DType::F32, &Device::Cpu)?;
/// let mut grads = model.backward(&(model.forward(&input)?.sum_all()? * 1e3)?)?;
/// let norm = clip_grad_norm(&model, &mut grads, 1.0)?;
/// assert!(norm > 1.0);
/// assert!((clip_grad_norm(&model, &mut grads, 1.0)? - 1.0).abs() < 1e-5);
/// # Ok::<(), lora::Error>(())
/// ```
pub fn clip_grad_norm<M: LoraModule>(
    model: &M,
    grads: &mut GradStore,
    max_norm: f64,
) -> Result<f64> {
    check_bound("max_norm", max_norm)?;
    let params = with_gradients(model, grads);
    let mut norm = norm(&params, false)?;
    if !norm.is_finite() {
        check_finite(&params)?;
        // The values are finite, but the sum of their squares is not.
        norm = self::norm(&params, true)?;
    }
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        for (param, grad) in params {
            grads.insert(&param.var, (grad * factor)?);
        }
    }
    Ok(norm)
}

/// Limits every value of the trained parameters' gradients to −`max_value` ..= `max_value`.
///
/// As PyTorch's `clip_grad_value_`, except for values that are not finite.
///
/// # Errors
/// Lists the parameters whose gradients hold NaN or infinity; all gradients then stay as they were.
/// An invalid `max_value` is an error too.
pub fn clip_grad_value<M: LoraModule>(
    model: &M,
    grads: &mut GradStore,
    max_value: f64,
) -> Result<()> {
    check_bound("max_value", max_value)?;
    let params = with_gradients(model, grads);
    check_finite(&params)?;
    for (param, grad) in params {
        grads.insert(&param.var, grad.clamp(-max_value, max_value)?);
    }
    Ok(())
}

fn with_gradients<M: LoraModule>(model: &M, grads: &GradStore) -> Vec<(Trained, Tensor)> {
    let params = trained(model).into_iter();
    let params = params.filter_map(|param| {
        let grad = grads.get(&param.var)?.clone();
        Some((param, grad))
    });
    params.collect()
}

/// The norm of all gradients. Squares are taken in at least f32, or all in f64 on the CPU.
fn norm(params: &[(Trained, Tensor)], in_f64: bool) -> Result<f64> {
    let mut squares = Vec::new();
    for (_, grad) in params {
        let grad = if in_f64 {
            grad.to_device(&Device::Cpu)?.to_dtype(DType::F64)?
        } else {
            grad.to_dtype(wider(grad.dtype(), DType::F32))?
        };
        squares.push(grad.sqr()?.sum_all()?);
    }
    let Some(first) = squares.first() else {
        return Ok(0.0);
    };
    let (device, dtype) = (first.device().clone(), first.dtype());
    // Gradients of one device are read together: each read waits for the device.
    let alike = |t: &Tensor| t.device().same_device(&device) && t.dtype() == dtype;
    let sum: f64 = if squares.iter().all(alike) {
        let squares = Tensor::stack(&squares, 0)?.to_device(&Device::Cpu)?;
        squares.to_dtype(DType::F64)?.to_vec1::<f64>()?.iter().sum()
    } else {
        let squares = squares.iter();
        squares.map(scalar).sum::<Result<f64>>()?
    };
    Ok(sum.sqrt())
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    Ok(tensor.to_scalar()?)
}

fn check_finite(params: &[(Trained, Tensor)]) -> Result<()> {
    let mut problems = Vec::new();
    for (param, grad) in params {
        if !ops::is_finite(grad)? {
            problems.push(format!("the gradient of `{}` is not finite", param.path));
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Optimizer(problems))
    }
}

fn check_bound(name: &str, bound: f64) -> Result<()> {
    if bound >= 0.0 {
        return Ok(());
    }
    let problem = format!("{name} is {bound}: it must be 0 or more");
    Err(Error::Optimizer(vec![problem]))
}
