//! Attention.

mod core;
mod cpu;
mod tensors;
mod visible;

pub(crate) use self::core::Core;

use super::{Compute, record, record_with_value};
use crate::kernels::attention::Sizes;
use crate::profile;
use candle_core::{Result, Tensor, bail};

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
    if !(softcapping > 0.0 && softcapping.is_finite()) {
        bail!("sdpa: softcapping must be a positive number, it is {softcapping}");
    }
    Attention {
        mask: mask.cloned(),
        causal: do_causal,
        soft_cap: (softcapping != 1.0).then_some(f64::from(softcapping)),
        ..Attention::new(f64::from(scale))
    }
    .forward(q, k, v)
}

/// Attention with what [`sdpa`]'s arguments cannot say: which keys a query sees, without a mask of all
/// pairs, and dropout.
///
/// Tiles of scores that no query of a block sees are never computed: a window costs what it shows,
/// and packed sequences cost what they would cost one by one.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use lora::ops::Attention;
///
/// let x = Tensor::randn(0f32, 1., (2, 4, 6, 8), &Device::Cpu)?;   // (batch, heads, time, dim)
/// // Two texts of six tokens, the second padded by two.
/// let tokens = Tensor::new(&[[1u8, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], &Device::Cpu)?;
/// let y = Attention::new(8f64.powf(-0.5)).sequences(&tokens).dropout(0.1).forward(&x, &x, &x)?;
/// assert_eq!(y.dims(), [2, 4, 6, 8]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Attention {
    scale: f64,
    mask: Option<Tensor>,
    causal: bool,
    window: Option<(usize, usize)>,
    sequences: Option<Tensor>,
    soft_cap: Option<f64>,
    dropout: f64,
}

impl Attention {
    /// softmax(scale·q·kᵀ)·v
    pub fn new(scale: f64) -> Self {
        Self {
            scale,
            mask: None,
            causal: false,
            window: None,
            sequences: None,
            soft_cap: None,
            dropout: 0.0,
        }
    }

    /// Query i sees the keys up to its own place, keys − queries + i.
    pub fn causal(mut self) -> Self {
        self.causal = true;
        self
    }

    /// A query sees at most this many keys before its own place, and this many behind. A causal window
    /// of w keys, as Mistral's, has w − 1 before.
    pub fn window(mut self, before: usize, behind: usize) -> Self {
        self.window = Some((before, behind));
        self
    }

    /// Numbers of sequences, integers of shape (batch, keys): a query sees only keys with the number of
    /// its own place. A padding mask is one, with 1 for tokens and 0 for padding; several texts packed in
    /// a row have a number each. Keys of one number stand together.
    pub fn sequences(mut self, numbers: &Tensor) -> Self {
        self.sequences = Some(numbers.clone());
        self
    }

    /// Values that are added to the scores; they broadcast to (batch, heads, queries, keys).
    pub fn mask(mut self, mask: &Tensor) -> Self {
        self.mask = Some(mask.clone());
        self
    }

    /// Scores s become c·tanh(s / c) before the mask.
    pub fn soft_cap(mut self, cap: f64) -> Self {
        self.soft_cap = Some(cap);
        self
    }

    /// Drops probabilities with this probability and divides the others by the probability to be kept:
    /// for training. The draw is [`seed_dropout`](super::seed_dropout)'s; no mask is held.
    pub fn dropout(mut self, probability: f64) -> Self {
        self.dropout = probability;
        self
    }

    /// Whether what a query sees depends on its place.
    pub(crate) fn sees_by_place(&self) -> bool {
        self.causal || self.window.is_some() || self.sequences.is_some()
    }

    /// The result for the arguments of [`sdpa`].
    ///
    /// # Errors
    /// As [`sdpa`], and if the keys of a sequence do not stand together or the dropout's probability is
    /// outside of `0.0..1.0`.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let core = self.core(sizes(q, k, v)?, q.dtype())?;
        let span = profile::forward("sdpa");
        let dtype = q.dtype();
        let problem = Problem {
            q: q.detach(),
            k: k.detach(),
            v: v.detach(),
            core,
        };
        let compute = Compute::of(q);
        let (output, log_sums) = match compute {
            Compute::F32 => problem.forward::<f32>()?,
            Compute::F64 => problem.forward::<f64>()?,
            Compute::Tensors => problem.composed()?,
        };
        let output = output.to_dtype(dtype)?;
        span.end([&output].into_iter());
        let args = [q, k, v];
        let output = match compute == Compute::Tensors || problem.core.sizes.needs_output() {
            true => record_with_value("sdpa", args, output, move |grad, output, wanted| {
                problem.gradients(grad, Some(output), &log_sums, wanted)
            })?,
            false => record("sdpa", args, output, move |grad, wanted| {
                problem.gradients(grad, None, &log_sums, wanted)
            })?,
        };
        output.transpose(1, 2)
    }
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

/// The arguments, without their graph.
struct Problem {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    core: Core,
}

type OnArguments = [Option<Tensor>; 3];

impl Problem {
    /// The gradients of the arguments; `output` may be missing where the kernels do not need it.
    fn gradients(
        &self,
        grad: &Tensor,
        output: Option<&Tensor>,
        log_sums: &Tensor,
        wanted: [bool; 3],
    ) -> Result<OnArguments> {
        match (Compute::of(grad), output) {
            (Compute::F32, output) => self.backward::<f32>(grad, output, log_sums, wanted),
            (Compute::F64, output) => self.backward::<f64>(grad, output, log_sums, wanted),
            (Compute::Tensors, Some(output)) => {
                self.composed_backward(grad, output, log_sums, wanted)
            }
            (Compute::Tensors, None) => bail!("sdpa: the gradient is on another device"),
        }
    }
}
