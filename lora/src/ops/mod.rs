//! Differentiable functions with the signatures of candle's.
//!
//! Candle's fused `layer_norm`, `rms_norm`, `softmax_last_dim` and `rope` record no backward pass:
//! a model that calls them gets no gradient below them, without a word. The functions here take
//! and return the same and pass the gradient. None of them computes the gradient of an argument
//! that is not tracked, so frozen weights cost nothing in the backward pass.

mod activation;
mod conv;
mod depthwise;
mod embedding;
mod linear;
mod norm;
mod record;
mod rope;
mod softmax;

pub use activation::{gelu, gelu_erf, relu, silu};
pub use conv::{conv1d, conv2d};
pub use embedding::embedding;
pub use linear::linear;
pub use norm::{affine, layer_norm, rms_norm};
pub use rope::{rope, rope_i, rope_thd};
pub use softmax::{softmax, softmax_last_dim};

pub(crate) use norm::{norm, standardize};

pub(crate) use record::{is_finite, record};

use candle_core::{DType, Result, Tensor};

/// The tensor without its graph, in the dtype to compute in: half types are computed in f32 on the
/// CPU, where candle does not multiply bf16.
pub(crate) fn working(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.detach();
    match tensor.dtype() {
        DType::BF16 | DType::F16 if tensor.device().is_cpu() => tensor.to_dtype(DType::F32),
        _ => Ok(tensor),
    }
}
