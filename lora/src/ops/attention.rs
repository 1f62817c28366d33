//! Attention.

use super::{Compute, record_with_value, working};
use crate::kernels::attention::{self, Attention, Given, Gradients, Heads, RowOrder, Sizes};
use crate::kernels::buffer::{Cpu, CpuStrided, tensor};
use crate::kernels::simd::Element;
use crate::profile;
use candle_core::{D, DType, Result, Tensor, bail};

/// Scaled dot-product attention, softmax(scale·q·kᵀ + mask)·v, with a gradient and on every device.
/// It computes what [`candle_nn::ops::sdpa`] computes on Metal.
///
/// `q` is (batch, heads, queries, dim), `k` (batch, kv_heads, keys, dim), `v` (batch, kv_heads,
/// keys, value_dim); the result is (batch, heads, queries, value_dim). Where kv_heads is less than
/// heads and divides them (grouped queries), head i uses the keys and values of head i / (heads /
/// kv_heads).
///
/// - `mask` is added to the scores; it broadcasts to (batch, heads, queries, keys) and gets no
///   gradient.
/// - With `do_causal` query i sees the keys up to keys − queries + i. The last query sees every
///   key, as with a cache of earlier keys.
/// - With a `softcapping` c other than 1, scores s become c·tanh(s / c) before the mask.
///
/// A query that sees no key gives zeros.
///
/// On the CPU the scores are computed in tiles and never held (FlashAttention,
/// <https://arxiv.org/abs/2205.14135>): memory grows with queries + keys. There the arguments are
/// read in place, so (batch, time, heads, dim) transposed to the shape above is not copied. The
/// result lies in memory as (batch, queries, heads, value_dim): transposing it back and joining the
/// heads costs nothing. Half types are computed in f32.
///
/// # Errors
/// If the shapes or dtypes do not fit, or `softcapping` is not a positive number.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
///
/// let (batch, heads, time, dim) = (1, 2, 3, 4);
/// let q = Tensor::randn(0f32, 1., (batch, heads, time, dim), &Device::Cpu)?;
/// let k = Tensor::zeros((batch, 1, time, dim), DType::F32, &Device::Cpu)?;
/// let v = Tensor::new(&[0f32, 1., 2.], &Device::Cpu)?.reshape((batch, 1, time, 1))?;
/// let y = lora::ops::sdpa(&q, &k, &v, None, true, 0.5, 1.0)?;
/// // Keys of zeros weigh the same: the mean of the values up to each query.
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [0., 0.5, 1., 0., 0.5, 1.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn sdpa(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    do_causal: bool,
    scale: f32,
    softcapping: f32,
) -> Result<Tensor> {
    let sizes = sizes(q, k, v)?;
    if !(softcapping > 0.0 && softcapping.is_finite()) {
        bail!("sdpa: softcapping must be a positive number, it is {softcapping}");
    }
    let span = profile::forward("sdpa");
    let dtype = q.dtype();
    let problem = Problem {
        q: q.detach(),
        k: k.detach(),
        v: v.detach(),
        mask: mask
            .map(|mask| check_mask(mask, &sizes, dtype))
            .transpose()?,
        sizes,
        causal: do_causal,
        scale: f64::from(scale),
        cap: (softcapping != 1.0).then_some(f64::from(softcapping)),
    };
    let (output, log_sums) = match Compute::of(q) {
        Compute::F32 => problem.forward::<f32>()?,
        Compute::F64 => problem.forward::<f64>()?,
        Compute::Tensors => problem.composed()?,
    };
    let output = output.to_dtype(dtype)?;
    span.end([&output].into_iter());
    let backward = move |grad: &Tensor, output: &Tensor, wanted: [bool; 3]| match Compute::of(grad)
    {
        Compute::F32 => problem.backward::<f32>(grad, output, &log_sums, wanted),
        Compute::F64 => problem.backward::<f64>(grad, output, &log_sums, wanted),
        Compute::Tensors => problem.composed_backward(grad, output, &log_sums, wanted),
    };
    record_with_value("sdpa", [q, k, v], output, backward)?.transpose(1, 2)
}

fn sizes(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Sizes> {
    let (q_dims, k_dims, v_dims) = (q.dims(), k.dims(), v.dims());
    let (
        &[batch, heads, queries, dim],
        &[k_batch, kv_heads, keys, k_dim],
        &[v_batch, v_heads, values, value_dim],
    ) = (q_dims, k_dims, v_dims)
    else {
        bail!(
            "sdpa: q, k and v must have 4 dimensions, their shapes are {q_dims:?}, {k_dims:?} and {v_dims:?}"
        );
    };
    let grouped = heads == 0 || (kv_heads > 0 && heads % kv_heads == 0);
    if (k_batch, k_dim) != (batch, dim)
        || (v_batch, v_heads, values) != (batch, kv_heads, keys)
        || !grouped
    {
        bail!("sdpa: the shapes of q {q_dims:?}, k {k_dims:?} and v {v_dims:?} do not fit");
    }
    let dtypes = [q.dtype(), k.dtype(), v.dtype()];
    if !q.dtype().is_float() || dtypes.iter().any(|&dtype| dtype != q.dtype()) {
        bail!("sdpa: q, k and v must be of one floating-point dtype, they are {dtypes:?}");
    }
    Ok(Sizes {
        batch,
        heads,
        kv_heads,
        queries,
        keys,
        dim,
        value_dim,
    })
}

/// The dtype of the scores for arguments of this dtype.
fn wide(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// The mask, broadcast to the shape of the scores and in their dtype.
fn check_mask(mask: &Tensor, sizes: &Sizes, dtype: DType) -> Result<Tensor> {
    if !mask.dtype().is_float() {
        bail!(
            "sdpa: the mask is added to the scores and must be floating-point, it is {:?}",
            mask.dtype()
        );
    }
    let shape = (sizes.batch, sizes.heads, sizes.queries, sizes.keys);
    match mask.detach().to_dtype(wide(dtype))?.broadcast_as(shape) {
        Ok(mask) => Ok(mask),
        Err(_) => bail!(
            "sdpa: a mask of shape {:?} does not broadcast to {shape:?}",
            mask.dims()
        ),
    }
}

/// The arguments, without their graph.
struct Problem {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Option<Tensor>,
    sizes: Sizes,
    causal: bool,
    scale: f64,
    cap: Option<f64>,
}

type OnArguments = [Option<Tensor>; 3];

/// With the kernels.
impl Problem {
    /// The output (batch, queries, heads, dim), and the logarithms of the sums.
    fn forward<T: Element>(&self) -> Result<(Tensor, Tensor)> {
        let Sizes {
            batch,
            heads,
            queries,
            value_dim,
            ..
        } = self.sizes;
        let (output, log_sums) = self.on_cpu(attention::forward::<T>)?;
        let output = tensor(output, (batch, queries, heads, value_dim))?;
        Ok((output, tensor(log_sums, (batch, heads, queries))?))
    }

    fn backward<T: Element>(
        &self,
        grad: &Tensor,
        output: &Tensor,
        log_sums: &Tensor,
        [on_q, on_k, on_v]: [bool; 3],
    ) -> Result<OnArguments> {
        let (grad, output) = (working(grad)?, working(output)?);
        let (grad, output) = (Cpu::of(&grad)?, Cpu::of(&output)?);
        let given = Given {
            output: &output,
            grad: &grad,
            log_sums: &Cpu::of(log_sums)?,
        };
        let wanted = Gradients {
            q: on_q.then(|| order(&self.q)),
            k: on_k.then(|| order(&self.k)),
            v: on_v.then(|| order(&self.v)),
        };
        let grads = self.on_cpu(|attention| attention::backward::<T>(attention, given, &wanted))?;
        Ok([
            grads.q.map(|grad| shaped(grad, &self.q)).transpose()?,
            grads.k.map(|grad| shaped(grad, &self.k)).transpose()?,
            grads.v.map(|grad| shaped(grad, &self.v)).transpose()?,
        ])
    }

    fn on_cpu<T: Element, R>(&self, f: impl FnOnce(&Attention<'_, T>) -> R) -> Result<R> {
        let (q, k, v) = (working(&self.q)?, working(&self.k)?, working(&self.v)?);
        let mask = self.mask.as_ref().map(CpuStrided::of).transpose()?;
        let (q, k, v) = (
            CpuStrided::of(&q)?,
            CpuStrided::of(&k)?,
            CpuStrided::of(&v)?,
        );
        Ok(f(&Attention {
            q: heads(&q),
            k: heads(&k),
            v: heads(&v),
            mask: mask.as_ref().map(heads),
            sizes: self.sizes,
            causal: self.causal,
            scale: self.scale,
            cap: self.cap,
        }))
    }
}

/// By tensor operations, for devices without kernels here. The numbers are the same, but all scores
/// are held at once.
impl Problem {
    fn composed(&self) -> Result<(Tensor, Tensor)> {
        let Sizes {
            batch,
            heads,
            queries,
            value_dim,
            ..
        } = self.sizes;
        let (dtype, device) = (self.q.dtype(), self.q.device());
        if self.is_empty() {
            let output = Tensor::zeros((batch, queries, heads, value_dim), dtype, device)?;
            let log_sums = Tensor::zeros((batch, heads, queries, 1), wide(dtype), device)?;
            return Ok((output, log_sums));
        }
        let (scores, _) = self.scores()?;
        // A shift of −∞ would turn masked scores into NaN.
        let shift = scores
            .max_keepdim(D::Minus1)?
            .maximum(f64::from(f32::MIN))?;
        let p = scores.broadcast_sub(&shift)?.exp()?;
        let sums = p.sum_keepdim(D::Minus1)?;
        // A query that sees no key has numerators of 0: any sum but 0 gives zeros, and 0 gives NaN.
        let sums = (&sums + sums.eq(0.0)?.to_dtype(sums.dtype())?)?;
        let p = p.broadcast_div(&sums)?.to_dtype(dtype)?;
        let output = p.matmul(&self.repeated(&self.v)?)?;
        Ok((
            output.transpose(1, 2)?.contiguous()?,
            (shift + sums.log()?)?,
        ))
    }

    fn composed_backward(
        &self,
        grad: &Tensor,
        output: &Tensor,
        log_sums: &Tensor,
        [on_q, on_k, on_v]: [bool; 3],
    ) -> Result<OnArguments> {
        if self.is_empty() {
            return Ok([
                on_q.then(|| self.q.zeros_like()).transpose()?,
                on_k.then(|| self.k.zeros_like()).transpose()?,
                on_v.then(|| self.v.zeros_like()).transpose()?,
            ]);
        }
        let dtype = self.q.dtype();
        let (scores, slopes) = self.scores()?;
        let p = scores.broadcast_sub(log_sums)?.exp()?;
        let along = (grad.to_dtype(p.dtype())? * output.to_dtype(p.dtype())?)?;
        let along = along.sum_keepdim(D::Minus1)?.transpose(1, 2)?;
        let grad = grad.transpose(1, 2)?.contiguous()?;
        let on_v = on_v.then(|| {
            let p = p.to_dtype(dtype)?;
            self.summed(p.transpose(2, 3)?.contiguous()?.matmul(&grad)?)
        });
        let on_v = on_v.transpose()?;
        if !on_q && !on_k {
            return Ok([None, None, on_v]);
        }
        let v = self.repeated(&self.v)?;
        let on_p = grad.matmul(&v.transpose(2, 3)?.contiguous()?)?;
        let mut on_scores = (on_p.to_dtype(p.dtype())?.broadcast_sub(&along)? * p)?;
        if let Some(slopes) = slopes {
            on_scores = (on_scores * slopes)?;
        }
        let on_scores = (on_scores * self.scale)?.to_dtype(dtype)?;
        let on_q = on_q.then(|| on_scores.matmul(&self.repeated(&self.k)?));
        let on_k = on_k.then(|| {
            let on_scores = on_scores.transpose(2, 3)?.contiguous()?;
            self.summed(on_scores.matmul(&self.q.contiguous()?)?)
        });
        Ok([on_q.transpose()?, on_k.transpose()?, on_v])
    }

    fn is_empty(&self) -> bool {
        let args = [&self.q, &self.k, &self.v];
        args.iter().any(|arg| arg.elem_count() == 0)
    }

    /// All the scores, and the derivative of the cap where scores are capped.
    fn scores(&self) -> Result<(Tensor, Option<Tensor>)> {
        let k = self.repeated(&self.k)?.transpose(2, 3)?.contiguous()?;
        let scores = self.q.contiguous()?.matmul(&k)?;
        let mut scores = (scores.to_dtype(wide(scores.dtype()))? * self.scale)?;
        let mut slopes = None;
        if let Some(cap) = self.cap {
            let tanh = (scores / cap)?.tanh()?;
            slopes = Some((1.0 - tanh.sqr()?)?);
            scores = (tanh * cap)?;
        }
        if let Some(mask) = &self.mask {
            scores = (scores + mask)?;
        }
        if self.causal {
            let Sizes { queries, keys, .. } = self.sizes;
            let hidden = (0..queries).flat_map(|query| {
                (0..keys).map(move |key| match key + queries <= keys + query {
                    true => 0f32,
                    false => f32::NEG_INFINITY,
                })
            });
            let hidden = Tensor::from_vec(hidden.collect(), (queries, keys), scores.device())?;
            scores = scores.broadcast_add(&hidden.to_dtype(scores.dtype())?)?;
        }
        Ok((scores, slopes))
    }

    /// Keys or values for each of the query heads.
    fn repeated(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, kv_heads, rows, dim) = xs.dims4()?;
        let group = self.sizes.heads / kv_heads;
        let xs = xs.unsqueeze(2)?;
        let xs = xs.expand((batch, kv_heads, group, rows, dim))?;
        xs.contiguous()?
            .reshape((batch, kv_heads * group, rows, dim))
    }

    /// Adds the gradients of repeated keys or values up to those of the keys or values.
    fn summed(&self, grad: Tensor) -> Result<Tensor> {
        let (batch, heads, rows, dim) = grad.dims4()?;
        let kv_heads = self.sizes.kv_heads;
        let shape = (batch, kv_heads, heads / kv_heads, rows, dim);
        grad.reshape(shape)?.sum(2)
    }
}

fn heads<'a, T: Element>(tensor: &'a CpuStrided<'_, T>) -> Heads<'a, T> {
    Heads {
        values: &tensor.values,
        steps: tensor.steps,
    }
}

/// The gradient of an argument, in its [`order`].
fn shaped<T: Element>(grad: Vec<T>, arg: &Tensor) -> Result<Tensor> {
    let (batch, heads, rows, dim) = arg.dims4()?;
    match order(arg) {
        RowOrder::HeadsFirst => tensor(grad, (batch, heads, rows, dim))?.to_dtype(arg.dtype()),
        RowOrder::RowsFirst => {
            let grad = tensor(grad, (batch, rows, heads, dim))?.to_dtype(arg.dtype())?;
            grad.transpose(1, 2)
        }
    }
}

/// The memory order that suits an argument's gradient best: the argument's own.
fn order(arg: &Tensor) -> RowOrder {
    match arg.stride() {
        [_, heads, rows, _] if heads < rows => RowOrder::RowsFirst,
        _ => RowOrder::HeadsFirst,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn numbers(shape: (usize, usize, usize, usize), seed: f64) -> Tensor {
        let (a, b, c, d) = shape;
        let values = (0..a * b * c * d).map(|i| (i as f64 * 1.7 + seed).sin());
        Tensor::from_vec(values.collect(), shape, &Device::Cpu).unwrap()
    }

    fn assert_same(what: &str, a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims(), "{what}");
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (a, b) = (values(a), values(b));
        let same = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
        assert!(a.iter().zip(&b).all(same), "{what}: {a:?} and {b:?}");
    }

    #[test]
    fn tensor_operations_give_the_same_numbers() {
        let none = f64::NEG_INFINITY;
        let mask = Tensor::new(&[[0.5, none, 0.0, -1.0], [none; 4], [0.0; 4]], &Device::Cpu);
        let mask = mask.unwrap();
        for (heads, kv_heads) in [(2, 2), (4, 2), (3, 1)] {
            for (queries, keys) in [(3, 4), (4, 3), (1, 1), (0, 2), (2, 0)] {
                for (causal, cap) in [(false, None), (true, None), (true, Some(1.5))] {
                    let q = numbers((2, heads, queries, 3), 1.0);
                    let k = numbers((2, kv_heads, keys, 3), 2.0);
                    let v = numbers((2, kv_heads, keys, 2), 3.0);
                    let sizes = sizes(&q, &k, &v).unwrap();
                    let mask = (mask.dims() == [queries, keys]).then_some(&mask);
                    let mask = mask.map(|mask| check_mask(mask, &sizes, DType::F64).unwrap());
                    let problem = Problem {
                        q,
                        k,
                        v,
                        mask,
                        sizes,
                        causal,
                        scale: 0.7,
                        cap,
                    };
                    let what = format!("{sizes:?} {causal} {cap:?}");
                    let (output, log_sums) = problem.forward::<f64>().unwrap();
                    let (composed, sums) = problem.composed().unwrap();
                    assert_same(&what, &output, &composed);
                    let grad = numbers((2, queries, heads, 2), 4.0);
                    for wanted in [[true; 3], [true, false, false], [false, true, false]] {
                        let ours = problem.backward::<f64>(&grad, &output, &log_sums, wanted);
                        let composed = problem.composed_backward(&grad, &composed, &sums, wanted);
                        for (ours, composed) in ours.unwrap().iter().zip(composed.unwrap()) {
                            assert_eq!(ours.is_some(), composed.is_some());
                            if let (Some(ours), Some(composed)) = (ours, composed) {
                                assert_same(&what, ours, &composed);
                            }
                        }
                    }
                }
            }
        }
    }
}
