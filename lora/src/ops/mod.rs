//! Differentiable functions with the signatures of candle's.
//!
//! Candle's fused `layer_norm`, `rms_norm`, `softmax_last_dim`, `rope`, `sdpa` and `flash_attn` record
//! no backward pass, and its caches of keys and values copy into a buffer. A model that uses them gets
//! no gradient below them, or a wrong one where another path leads around them. The functions and
//! caches here have the same arguments and results, and pass the gradient. They compute the gradients
//! of tracked arguments only, so frozen weights cost nothing in the backward pass.
//!
//! Candle's backward pass of some methods of tensors is missing or wrong: [`scatter`], [`scatter_add`],
//! [`conv1d`], [`conv2d`], [`conv_transpose1d`], [`conv_transpose2d`], [`upsample_nearest1d`], [`upsample_nearest2d`], [`upsample_bilinear2d`],
//! [`avg_pool2d`] and [`max_pool2d`] take their place.
//!
//! In a method under [`#[lora::forward]`](crate::forward) the copy for the LoRA type calls these
//! functions wherever the method calls candle's, however the call is spelt. Elsewhere, call them
//! yourself.

mod activation;
mod adapted;
mod affine;
mod attention;
mod block;
mod candle;
mod checkpoint;
mod contiguous;
mod conv;
mod cross_entropy;
mod dora;
mod dropout;
mod embedding;
mod finite;
mod flash_attn;
mod gated;
mod kv_cache;
mod linear;
mod mlp;
mod norm;
mod pool;
mod prelu;
mod quantised;
mod receiver;
mod rope;
mod scatter;
mod self_attention;
mod softmax;
mod tape;
mod top_k;
mod upsample;

pub use activation::{gelu, gelu_erf, relu, silu};
pub use affine::{add, affine, residual};
pub use attention::{Attention, sdpa};
pub use checkpoint::checkpoint;
pub use contiguous::contiguous;
pub use conv::{conv_transpose1d, conv_transpose2d, conv1d, conv2d};
pub use cross_entropy::{CrossEntropy, cross_entropy};
pub use dropout::{dropout, seed_dropout};
pub use embedding::embedding;
pub use flash_attn::flash_attn;
pub use kv_cache::{ConcatKvCache, KvCache, RotatingKvCache};
pub use linear::linear;
pub use norm::{group_norm, layer_norm, rms_norm};
pub use pool::{avg_pool2d, max_pool2d};
pub use prelu::prelu;
pub use rope::{rope, rope_i, rope_thd};
pub use scatter::{scatter, scatter_add};
pub use softmax::{softmax, softmax_last_dim};
pub use top_k::top_k;
pub use upsample::{
    upsample_bilinear2d, upsample_bilinear2d_with_scale, upsample_nearest1d, upsample_nearest2d,
};

#[doc(hidden)]
pub use candle::{Candle, Function, Other};
#[doc(hidden)]
pub use receiver::{AsTensor, Receiver};

pub(crate) use adapted::{Detour, LinearParts, UpdateParts, Updated, adapted_linear};
pub(crate) use block::{Added, Behind, NormParts};
pub(crate) use dora::weight_norms;
pub(crate) use dropout::dropout_state;
pub(crate) use finite::{first_not_finite, is_finite};
pub(crate) use mlp::{FirstParts, MlpParts, activate, residual_mlp};
pub(crate) use norm::norm;
pub(crate) use quantised::{Blocks, quantised_embedding};
pub(crate) use self_attention::{AttentionParts, InputParts, Tables, self_attention};
#[doc(hidden)]
pub use tape::recorded_values;

pub(crate) use tape::{record, record_all, record_with_value};

use candle_core::{DType, Result, Tensor};

/// The tensor without its graph, in the dtype to compute in. On the CPU half types are computed in
/// f32, because candle does not multiply bf16 there.
pub(crate) fn working(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.detach();
    match tensor.dtype() {
        DType::BF16 | DType::F16 if tensor.device().is_cpu() => tensor.to_dtype(DType::F32),
        _ => Ok(tensor),
    }
}

/// How an op computes on a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compute {
    /// With the CPU kernels in f32, on [`working`] copies of half types.
    F32,
    /// With the CPU kernels in f64.
    F64,
    /// With tensor operations, on any other device.
    Tensors,
}

impl Compute {
    pub(crate) fn of(tensor: &Tensor) -> Self {
        match tensor.dtype() {
            DType::F32 | DType::BF16 | DType::F16 if tensor.device().is_cpu() => Self::F32,
            DType::F64 if tensor.device().is_cpu() => Self::F64,
            _ => Self::Tensors,
        }
    }
}

/// Applies an op that treats all elements alike to the tensor in its memory order. A permuted
/// tensor is not copied, and the result is permuted in the same way.
pub(crate) fn in_memory_order(
    xs: &Tensor,
    op: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    in_memory_order_along(xs, 0, |xs, _| op(xs))
}

/// As [`in_memory_order`], for an op along one dimension. The op is told where that dimension lies
/// in memory order.
pub(crate) fn in_memory_order_along(
    xs: &Tensor,
    dim: usize,
    op: impl FnOnce(&Tensor, usize) -> Result<Tensor>,
) -> Result<Tensor> {
    match permutation(xs) {
        Some((order, inverse)) => {
            let position = inverse.get(dim).copied().unwrap_or(dim);
            op(&xs.permute(order)?, position)?.permute(inverse)
        }
        None => op(&contiguous(xs)?, dim),
    }
}

/// The dimensions of a permuted tensor in memory order, and the permutation that leads back.
pub(crate) fn permutation(xs: &Tensor) -> Option<(Vec<usize>, Vec<usize>)> {
    let order = tape::memory_order(xs.layout()).filter(|_| !xs.is_contiguous())?;
    let mut inverse = vec![0; order.len()];
    for (position, &dim) in order.iter().enumerate() {
        inverse[dim] = position;
    }
    Some((order, inverse))
}

/// The dtype to sum values of this dtype in.
pub(crate) fn wide(dtype: DType) -> DType {
    wider(dtype, DType::F32)
}

/// The dtype that holds the values of both floating-point dtypes.
pub(crate) fn wider(a: DType, b: DType) -> DType {
    match (a, b) {
        (a, b) if a == b => a,
        (DType::F64, _) | (_, DType::F64) => DType::F64,
        _ => DType::F32,
    }
}
