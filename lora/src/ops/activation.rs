//! Activations whose derivative candle rounds, or takes another way than PyTorch.

use super::{record, working};
use candle_core::{Result, Tensor};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// GELU by the error function, x·Φ(x), as [`Tensor::gelu_erf`]; the derivative is exact where
/// candle's rounds its constants to six digits.
///
/// # Errors
/// If the dtype is not a floating-point one.
pub fn gelu_erf(xs: &Tensor) -> Result<Tensor> {
    unary("gelu-erf", xs, Tensor::gelu_erf, |x| {
        let phi = ((x.sqr()? * -0.5)?.exp()? * (0.5 / PI).sqrt())?;
        let cumulative = (((x * FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
        cumulative + (x * phi)?
    })
}

/// GELU by the hyperbolic tangent, as [`Tensor::gelu`]; the derivative is exact where candle's
/// rounds its constants to six digits.
///
/// # Errors
/// If the dtype is not a floating-point one.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    unary("gelu", xs, Tensor::gelu, |x| {
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

/// max(x, 0), as [`Tensor::relu`]; the derivative at 0 is 0, as in PyTorch, where candle's is 1.
///
/// # Errors
/// If the dtype is not a number's.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    unary("relu", xs, Tensor::relu, |x| {
        x.gt(&x.zeros_like()?)?.to_dtype(x.dtype())
    })
}

/// x·σ(x), as [`candle_nn::ops::silu`].
///
/// # Errors
/// If the dtype is not a floating-point one.
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    unary("silu", xs, Tensor::silu, |x| {
        let sigmoid = candle_nn::ops::sigmoid(x)?;
        let rest = ((1.0 - &sigmoid)? * x)?;
        sigmoid * (rest + 1.0)?
    })
}

/// A function of each element with its derivative, both computed in the working precision.
fn unary(
    name: &'static str,
    xs: &Tensor,
    function: fn(&Tensor) -> Result<Tensor>,
    derivative: fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let dtype = xs.dtype();
    let x = xs.detach();
    let y = function(&working(&x)?)?.to_dtype(dtype)?;
    record(name, [xs], y, move |grad, _, _| {
        let grad = (working(grad)? * derivative(&working(&x)?)?)?;
        Ok([Some(grad.to_dtype(dtype)?)])
    })
}
