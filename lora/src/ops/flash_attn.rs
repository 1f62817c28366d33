//! Candle's fused attention for the CPU, with a gradient.

use super::sdpa;
use candle_core::{DType, Result, Tensor, WithDType, bail};
use candle_nn::attention::AttnMask;

/// Attention with the arguments of [`candle_nn::attention::flash_attn`] and a gradient, on every
/// device: [`sdpa`] of transposed tensors.
///
/// `q` is (batch, queries, heads, dim), `k` and `v` are (batch, keys, kv_heads, dim). The result is
/// (batch, heads, queries, dim), as candle's is. For one sequence the result is f32, as candle's is.
/// `T` is the dtype, as for candle's function; the tensors say which dtype is computed in. A mask
/// holds queries × keys values, or broadcasts to (batch, heads, queries, keys).
///
/// # Errors
/// Those of [`sdpa`], and an ALiBi bias (`max_bias` above 0): add the bias to the mask.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use candle_nn::attention::AttnMask;
///
/// let q = Var::new(&[[[[1f32, 0.]], [[0., 1.]]]], &Device::Cpu)?;
/// let v = Tensor::new(&[[[[1f32, 2.]], [[3., 4.]]]], &Device::Cpu)?;
/// let y = lora::ops::flash_attn::<f32>(&q, &v, &v, 0.0, AttnMask::causal(), None, None)?;
/// // Scores of zero weigh the same: the mean of the values up to each query.
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [1., 2., 2., 3.]);
/// assert!(y.sqr()?.backward()?.get(&q).is_some());
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn flash_attn<T: WithDType>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    attn_mask: AttnMask,
    max_bias: Option<f32>,
    softcap: Option<f32>,
) -> Result<Tensor> {
    attention(q, k, v, softmax_scale, attn_mask, max_bias, softcap)
}

/// As [`flash_attn`], with the dtypes of the tensors.
pub(super) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f32,
    mask: AttnMask,
    max_bias: Option<f32>,
    softcap: Option<f32>,
) -> Result<Tensor> {
    if max_bias.is_some_and(|bias| bias > 0.0) {
        bail!("flash_attn: `max_bias` has no gradient here, add the ALiBi bias to the mask");
    }
    let (batch, queries, _, _) = q.dims4()?;
    let keys = k.dim(1)?;
    let (q, k, v) = (q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?);
    let (mask, causal) = match mask {
        AttnMask::None => (None, false),
        // Of several sequences candle aligns the last query with the last key, whatever the offset.
        AttnMask::Causal { kv_offset } if batch > 1 || kv_offset + queries == keys => (None, true),
        AttnMask::Causal { kv_offset } => (Some(causal_mask(&q, keys, kv_offset)?), false),
        AttnMask::Mask(mask) if mask.elem_count() == queries * keys => {
            (Some(mask.reshape((1, 1, queries, keys))?), false)
        }
        AttnMask::Mask(mask) => (Some(mask), false),
    };
    let cap = softcap.filter(|&cap| cap != 0.0).unwrap_or(1.0);
    let output = sdpa(&q, &k, &v, mask.as_ref(), causal, scale, cap)?;
    match batch {
        1 => output.to_dtype(DType::F32),
        _ => Ok(output),
    }
}

/// As [`attention`], with the arguments of `run_flash_attn_cpu`.
pub(super) fn masked(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    scale: f32,
    max_bias: Option<f32>,
    softcap: Option<f32>,
) -> Result<Tensor> {
    let mask = mask.map_or(AttnMask::None, |mask| AttnMask::Mask(mask.clone()));
    attention(q, k, v, scale, mask, max_bias, softcap)
}

/// The mask by which query i sees the keys up to `offset` + i.
fn causal_mask(q: &Tensor, keys: usize, offset: usize) -> Result<Tensor> {
    let (_, _, queries, _) = q.dims4()?;
    let hidden = |query: usize, key: usize| key > offset + query;
    let values = (0..queries).flat_map(|query| {
        (0..keys).map(move |key| {
            if hidden(query, key) {
                f32::NEG_INFINITY
            } else {
                0.0
            }
        })
    });
    let values: Vec<f32> = values.collect();
    Tensor::from_vec(values, (1, 1, queries, keys), q.device())?.to_dtype(q.dtype())
}
