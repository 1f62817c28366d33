//! On the CPU, by the kernels.

use super::core::heads;
use super::{OnArguments, Problem};
use crate::kernels::attention::{self, Attention, Given, Gradients, RowOrder, Sizes};
use crate::kernels::buffer::{Cpu, CpuStrided, tensor};
use crate::kernels::simd::Element;
use crate::ops::working;
use candle_core::{Result, Tensor};

impl Problem {
    /// The output (batch, queries, heads, dim), and the logarithms of the sums.
    pub(super) fn forward<T: Element>(&self) -> Result<(Tensor, Tensor)> {
        let Sizes {
            batch,
            heads,
            queries,
            value_dim,
            ..
        } = self.core.sizes;
        let (output, log_sums) = self.on_cpu(attention::forward::<T>)?;
        let output = tensor(output, (batch, queries, heads, value_dim))?;
        Ok((output, tensor(log_sums, (batch, heads, queries))?))
    }

    pub(super) fn backward<T: Element>(
        &self,
        grad: &Tensor,
        output: Option<&Tensor>,
        log_sums: &Tensor,
        [on_q, on_k, on_v]: [bool; 3],
    ) -> Result<OnArguments> {
        let (grad, output) = (working(grad)?, output.map(working).transpose()?);
        let grad = Cpu::of(&grad)?;
        let output = output.as_ref().map(Cpu::of).transpose()?;
        let given = Given {
            output: output.as_deref(),
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
        let mask = self.core.mask()?;
        let (q, k, v) = (
            CpuStrided::of(&q)?,
            CpuStrided::of(&k)?,
            CpuStrided::of(&v)?,
        );
        Ok(f(
            &(self.core).kernel([&q, &k, &v].map(heads), mask.as_ref())
        ))
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
