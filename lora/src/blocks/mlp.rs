//! Two layers and an activation.

use super::{AsLinear, AsNorm};
use crate::ops::{Added, Behind, FirstParts, MlpParts, residual_mlp};
use candle_core::{Result, Tensor};
use candle_nn::Activation;

/// Two linear layers with an activation between them, or a gated MLP: see [`gated`](Self::gated). On
/// request a norm comes before them, a factor for each channel behind them, and a shortcut around
/// everything: `shortcut + gamma·fc2(act(fc1(norm(x))))`.
///
/// The block runs as one node in f32 or f64 on the CPU, if everything but the layers' adapters is
/// frozen and a layer has at most one adapter; dropout included. Anything else runs layer by layer
/// with the same result.
///
/// The node keeps its input, and for the backward pass the hidden values before the activation; of a
/// gated MLP gate and up, not their product.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Activation, LayerNorm, Linear};
/// use lora::blocks::Mlp;
///
/// let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
/// let fc1 = Linear::new(ones(&[8, 2])?, Some(ones(&[8])?));
/// let fc2 = Linear::new(ones(&[2, 8])?, None);
/// let norm = LayerNorm::new(ones(&[2])?, ones(&[2])?, 1e-5);
///
/// let x = ones(&[3, 2])?;
/// let y = Mlp::new(&fc1, &Activation::Relu, &fc2).norm(&norm).shortcut(&x).forward(&x)?;
/// // The norm of equal numbers is its bias, 1: 1 + 8·relu(1 + 1 + 1).
/// assert_eq!(y.to_vec2::<f32>()?[0], [25., 25.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Mlp<'a> {
    norm: Option<&'a dyn AsNorm>,
    first: First<'a>,
    act: Activation,
    fc2: &'a dyn AsLinear,
    behind: Behind,
    recompute: bool,
}

/// What makes the hidden values.
#[derive(Clone, Copy, Debug)]
enum First<'a> {
    Plain(&'a dyn AsLinear),
    Gated(&'a dyn AsLinear, &'a dyn AsLinear),
    Joined(&'a dyn AsLinear),
}

impl<'a> Mlp<'a> {
    /// `fc2(act(fc1(x)))`
    pub fn new(fc1: &'a impl AsLinear, act: &Activation, fc2: &'a impl AsLinear) -> Self {
        Self::of(First::Plain(fc1), act, fc2)
    }

    /// `down(act(gate(x))·up(x))`: SwiGLU with [`Activation::Silu`], GEGLU with
    /// [`Activation::Gelu`], <https://arxiv.org/abs/2002.05202>.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::{Activation, Linear};
    /// use lora::blocks::Mlp;
    ///
    /// let layer = |out: usize, input: usize, value: f32| {
    ///     Tensor::full(value, (out, input), &Device::Cpu).map(|weight| Linear::new(weight, None))
    /// };
    /// let (gate, up, down) = (layer(8, 2, 1.0)?, layer(8, 2, 3.0)?, layer(2, 8, 1.0)?);
    /// let x = Tensor::ones((3, 2), DType::F32, &Device::Cpu)?;
    /// let y = Mlp::gated(&gate, &Activation::Relu, &up, &down).forward(&x)?;
    /// // 8·relu(2)·6
    /// assert_eq!(y.to_vec2::<f32>()?[0], [96., 96.]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn gated(
        gate: &'a impl AsLinear,
        act: &Activation,
        up: &'a impl AsLinear,
        down: &'a impl AsLinear,
    ) -> Self {
        Self::of(First::Gated(gate, up), act, down)
    }

    /// As [`gated`](Self::gated), with gate and up in one layer, the gate's outputs first.
    pub fn joined(gate_up: &'a impl AsLinear, act: &Activation, down: &'a impl AsLinear) -> Self {
        Self::of(First::Joined(gate_up), act, down)
    }

    fn of(first: First<'a>, act: &Activation, fc2: &'a dyn AsLinear) -> Self {
        Self {
            norm: None,
            first,
            act: *act,
            fc2,
            behind: Behind::default(),
            recompute: false,
        }
    }

    /// Puts a norm in front of the first layer.
    pub fn norm(mut self, norm: &'a impl AsNorm) -> Self {
        self.norm = Some(norm);
        self
    }

    /// Drops results with this probability, before the factors and the shortcut, and divides the others
    /// by the probability to be kept: for training. The draw is
    /// [`seed_dropout`](crate::ops::seed_dropout)'s.
    pub fn dropout(mut self, probability: f64) -> Self {
        self.behind.dropout = probability;
        self
    }

    /// Multiplies the result by a factor for each channel, (out), before the shortcut is added.
    pub fn gamma(mut self, gamma: Option<&Tensor>) -> Self {
        self.behind.gamma = gamma.cloned();
        self
    }

    /// Adds a tensor of the result's shape.
    pub fn shortcut(mut self, shortcut: &Tensor) -> Self {
        self.behind.shortcut = Added::Tensor(shortcut.clone());
        self
    }

    /// Adds the norm's result, where a model's norm stands behind a sum: as BERT's, whose MLP and the
    /// shortcut around it start behind the norm of the attention. Without a norm that is the input.
    pub fn shortcut_of_norm(mut self) -> Self {
        self.behind.shortcut = Added::Normed;
        self
    }

    /// Computes the hidden values anew in the backward pass instead of keeping them. That saves
    /// memory for the time of one more product.
    pub fn recompute(mut self, recompute: bool) -> Self {
        self.recompute = recompute;
        self
    }

    /// The result for an input (.., in): (.., out).
    ///
    /// # Errors
    /// If the shapes or dtypes do not fit, or the dropout's probability is outside of `0.0..1.0`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.behind.check()?;
        let first = match self.first {
            First::Plain(fc1) => FirstParts::Plain(fc1.as_linear()?),
            First::Gated(gate, up) => FirstParts::Gated(gate.as_linear()?, up.as_linear()?),
            First::Joined(both) => FirstParts::Joined(both.as_linear()?),
        };
        let parts = MlpParts {
            norm: self.norm.map(AsNorm::as_norm).transpose()?,
            first,
            act: self.act,
            fc2: self.fc2.as_linear()?,
            behind: self.behind.clone(),
            recompute: self.recompute,
        };
        residual_mlp(xs, &parts)
    }
}
