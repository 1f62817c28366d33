//! Activations.

use super::{Compute, in_memory_order, record, working};
use crate::kernels::activation::{self, Function, GeluErf, GeluTanh, Relu, Silu};
use crate::kernels::buffer::{Cpu, buffer, tensor};
use crate::kernels::matrix::Threads;
use crate::kernels::simd::Element;
use crate::profile;
use candle_core::{Result, Tensor, bail};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// GELU by the error function, x·Φ(x), as [`Tensor::gelu_erf`]. The derivative is exact; candle's
/// rounds its constants to six digits.
///
/// # Errors
/// If the dtype is not a floating-point one.
pub fn gelu_erf(xs: &Tensor) -> Result<Tensor> {
    unary::<GeluErf>("gelu-erf", xs, Tensor::gelu_erf, |x| {
        let phi = ((x.sqr()? * -0.5)?.exp()? * (0.5 / PI).sqrt())?;
        let cumulative = (((x * FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
        cumulative + (x * phi)?
    })
}

/// GELU by the hyperbolic tangent, as [`Tensor::gelu`]. The derivative is exact; candle's rounds
/// its constants to six digits.
///
/// # Errors
/// If the dtype is not a floating-point one.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    unary::<GeluTanh>("gelu", xs, Tensor::gelu, |x| {
        // 0.5·(1 + t) + 0.5·x·(1 − t²)·u', t = tanh(u), u = √(2/π)·(x + 0.044715·x³)
        let root = (2.0 / PI).sqrt();
        let square = x.sqr()?;
        let inner = (((&square * (0.044715 * root))? + root)? * x)?;
        let slope = ((square * (3.0 * 0.044715 * root))? + root)?;
        let tanh = inner.tanh()?;
        let rest = ((1.0 - tanh.sqr()?)? * (x * slope)?)?;
        ((tanh + 1.0)? + rest)? * 0.5
    })
}

/// max(x, 0), as [`Tensor::relu`]. The derivative at 0 is 0, as in PyTorch; candle's is 1.
///
/// # Errors
/// If the dtype does not hold numbers.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    unary::<Relu>("relu", xs, Tensor::relu, |x| {
        x.gt(&x.zeros_like()?)?.to_dtype(x.dtype())
    })
}

/// x·σ(x), as [`candle_nn::ops::silu`].
///
/// # Errors
/// If the dtype is not a floating-point one.
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    unary::<Silu>("silu", xs, Tensor::silu, |x| {
        let sigmoid = candle_nn::ops::sigmoid(x)?;
        let rest = ((1.0 - &sigmoid)? * x)?;
        sigmoid * (rest + 1.0)?
    })
}

type Map = fn(&Tensor) -> Result<Tensor>;

/// A function of each element with its derivative, both computed in the working precision. The
/// kernels compute them where they serve; elsewhere `value` and `slope` do.
fn unary<F: Function + 'static>(
    name: &'static str,
    xs: &Tensor,
    value: Map,
    slope: Map,
) -> Result<Tensor> {
    // For integers candle's functions give zeros without a word, except relu.
    if !xs.dtype().is_float() && name != "relu" {
        bail!(
            "{name}: the input must be floating-point, it is {:?}",
            xs.dtype()
        );
    }
    in_memory_order(xs, |xs| {
        let span = profile::forward(name);
        let dtype = xs.dtype();
        let x = xs.detach();
        let y = match Compute::of(&x) {
            Compute::F32 => values::<F, f32>(&working(&x)?)?,
            Compute::F64 => values::<F, f64>(&x)?,
            Compute::Tensors => value(&working(&x)?)?,
        };
        let y = y.to_dtype(dtype)?;
        span.end([&y].into_iter());
        record(name, [xs], y, move |grad, _| {
            let grad = match Compute::of(&x) {
                Compute::F32 => slopes::<F, f32>(&working(&x)?, &working(grad)?)?,
                Compute::F64 => slopes::<F, f64>(&x, grad)?,
                Compute::Tensors => (working(grad)? * slope(&working(&x)?)?)?,
            };
            Ok([Some(grad.to_dtype(dtype)?)])
        })
    })
}

fn values<F: Function, T: Element>(x: &Tensor) -> Result<Tensor> {
    let mut y = buffer::<T>(x.elem_count());
    activation::value_on::<F, T>(Threads::All, &Cpu::of(x)?, &mut y);
    tensor(y, x.shape())
}

fn slopes<F: Function, T: Element>(x: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let mut y = buffer::<T>(x.elem_count());
    activation::apply_slope::<F, T>(&Cpu::of(x)?, &Cpu::of(grad)?, &mut y);
    tensor(y, x.shape())
}
