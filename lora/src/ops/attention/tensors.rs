//! By tensor operations, for devices without kernels here. The numbers are the same, but all scores
//! are held at once.

use super::{OnArguments, Problem};
use crate::kernels::attention::Sizes;
use crate::ops::wide;
use candle_core::{D, Device, Result, Tensor};

impl Problem {
    pub(super) fn composed(&self) -> Result<(Tensor, Tensor)> {
        let Sizes {
            batch,
            heads,
            queries,
            value_dim,
            ..
        } = self.core.sizes;
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
        let p = self.dropped(p.broadcast_div(&sums)?)?.to_dtype(dtype)?;
        let output = p.matmul(&self.repeated(&self.v)?)?;
        Ok((
            output.transpose(1, 2)?.contiguous()?,
            (shift + sums.log()?)?,
        ))
    }

    pub(super) fn composed_backward(
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
            let p = self.dropped(p.clone())?.to_dtype(dtype)?;
            self.summed(p.transpose(2, 3)?.contiguous()?.matmul(&grad)?)
        });
        let on_v = on_v.transpose()?;
        if !on_q && !on_k {
            return Ok([None, None, on_v]);
        }
        let v = self.repeated(&self.v)?;
        let on_p = grad.matmul(&v.transpose(2, 3)?.contiguous()?)?;
        let on_p = self.dropped(on_p.to_dtype(p.dtype())?)?;
        let mut on_scores = (on_p.broadcast_sub(&along)? * p)?;
        if let Some(slopes) = slopes {
            on_scores = (on_scores * slopes)?;
        }
        let on_scores = (on_scores * self.core.scale)?.to_dtype(dtype)?;
        let on_q = on_q.then(|| on_scores.matmul(&self.repeated(&self.k)?));
        let on_k = on_k.then(|| {
            let on_scores = on_scores.transpose(2, 3)?.contiguous()?;
            self.summed(on_scores.matmul(&self.q.contiguous()?)?)
        });
        Ok([on_q.transpose()?, on_k.transpose()?, on_v])
    }

    /// Probabilities, or their gradient, after dropout.
    fn dropped(&self, p: Tensor) -> Result<Tensor> {
        let Some(dropout) = &self.core.dropout else {
            return Ok(p);
        };
        let kept = Tensor::from_vec(dropout.kept(p.elem_count()), p.shape(), &Device::Cpu)?;
        let kept = kept.to_device(p.device())?.to_dtype(p.dtype())?;
        p * (kept * dropout.factor())?
    }

    fn is_empty(&self) -> bool {
        let args = [&self.q, &self.k, &self.v];
        args.iter().any(|arg| arg.elem_count() == 0)
    }

    /// All the scores, and the derivative of the cap where scores are capped.
    fn scores(&self) -> Result<(Tensor, Option<Tensor>)> {
        let k = self.repeated(&self.k)?.transpose(2, 3)?.contiguous()?;
        let scores = self.q.contiguous()?.matmul(&k)?;
        let mut scores = (scores.to_dtype(wide(scores.dtype()))? * self.core.scale)?;
        let mut slopes = None;
        if let Some(cap) = self.core.cap {
            let tanh = (scores / cap)?.tanh()?;
            slopes = Some((1.0 - tanh.sqr()?)?);
            scores = (tanh * cap)?;
        }
        if let Some(mask) = &self.core.mask {
            scores = (scores + mask)?;
        }
        if let Some(hidden) = self
            .core
            .visible
            .hidden(&self.core.sizes, scores.device())?
        {
            scores = scores.broadcast_add(&hidden.to_dtype(scores.dtype())?)?;
        }
        Ok((scores, slopes))
    }

    /// Keys or values for each of the query heads.
    fn repeated(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, kv_heads, rows, dim) = xs.dims4()?;
        let group = self.core.sizes.heads / kv_heads;
        let xs = xs.unsqueeze(2)?;
        let xs = xs.expand((batch, kv_heads, group, rows, dim))?;
        xs.contiguous()?
            .reshape((batch, kv_heads * group, rows, dim))
    }

    /// Adds the gradients of repeated keys or values up to those of the keys or values.
    fn summed(&self, grad: Tensor) -> Result<Tensor> {
        let (batch, heads, rows, dim) = grad.dims4()?;
        let kv_heads = self.core.sizes.kv_heads;
        let shape = (batch, kv_heads, heads / kv_heads, rows, dim);
        grad.reshape(shape)?.sum(2)
    }
}

#[cfg(test)]
mod tests {
    use super::super::core::{Core, check_mask};
    use super::super::{sizes, visible::Visible};
    use super::*;
    use crate::kernels::dropout::Dropout;
    use candle_core::DType;

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
                    let window = cap.map(|_| (1, 0));
                    let dropout = cap.map(|_| Dropout::new(0.3, 11));
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
                        core: Core {
                            sizes,
                            mask,
                            visible: Visible::new(causal, window, None, &sizes).unwrap(),
                            dropout,
                            scale: 0.7,
                            cap,
                        },
                    };
                    let what = format!("{sizes:?} {causal} {cap:?}");
                    let (output, log_sums) = problem.forward::<f64>().unwrap();
                    let (composed, sums) = problem.composed().unwrap();
                    assert_same(&what, &output, &composed);
                    let grad = numbers((2, queries, heads, 2), 4.0);
                    for wanted in [[true; 3], [true, false, false], [false, true, false]] {
                        let composed = problem.composed_backward(&grad, &composed, &sums, wanted);
                        let composed = composed.unwrap();
                        // These keys are one tile, whose gradients need no output.
                        for output in [Some(&output), None] {
                            let ours = problem.backward::<f64>(&grad, output, &log_sums, wanted);
                            for (ours, composed) in ours.unwrap().iter().zip(&composed) {
                                assert_eq!(ours.is_some(), composed.is_some());
                                if let (Some(ours), Some(composed)) = (ours, composed) {
                                    assert_same(&what, ours, composed);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
