//! The cross-entropy of logits, and of a linear layer's logits that are never held all at once.

mod cpu;
mod labels;
mod tensors;

use super::quantised::{Blocks, quantised_linear};
use super::{Compute, contiguous::copy, record, working};
use crate::profile;
use candle_core::{DType, Result, Tensor, bail};
use labels::Labels;

/// The mean cross-entropy of logits, as [`CrossEntropy::of_logits`] with its defaults.
///
/// It takes candle's arguments, logits (n, classes) and labels (n), and more: any dimensions before
/// the classes, and labels of −100 that do not count.
///
/// # Errors
/// Those of [`CrossEntropy::of_logits`].
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let logits = Tensor::new(&[[0f32, 0.], [9., 9.]], &Device::Cpu)?;
/// let loss = lora::ops::cross_entropy(&logits, &Tensor::new(&[1i64, -100], &Device::Cpu)?)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 2f32.ln());
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    CrossEntropy::new().of_logits(logits, labels)
}

/// The cross-entropy of classes, with PyTorch's settings, over logits or over a linear layer.
///
/// A language model's logits are the largest tensor of its step: 512 tokens over 49,152 words are
/// 100 MB, held several times by a loss made of single operations. [`of_linear`](Self::of_linear)
/// computes the logits of some rows at a time, and their gradients in the same place.
///
/// The result is a scalar in f32, or f64 for f64. A batch without a label that counts has a loss of 0
/// and gradients of 0, where PyTorch's mean is NaN.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use lora::ops::CrossEntropy;
///
/// let hidden = Var::new(&[[[1f32, 2.], [3., 4.]]], &Device::Cpu)?;      // (1, 2, 2)
/// let head = Tensor::new(&[[1f32, 0.], [0., 1.], [1., 1.]], &Device::Cpu)?;  // 3 words
/// let next = Tensor::new(&[[2i64, -100]], &Device::Cpu)?;              // the last has no next word
/// let loss = CrossEntropy::new().of_linear(&hidden, &head, None, &next)?;
/// let whole = CrossEntropy::new().of_logits(&hidden.broadcast_matmul(&head.t()?)?, &next)?;
/// assert!((loss.to_scalar::<f32>()? - whole.to_scalar::<f32>()?).abs() < 1e-6);
/// assert!(loss.backward()?.get(&hidden).is_some());
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    ignored: i64,
    smoothing: f64,
    weights: Option<Tensor>,
    scale: f64,
    soft_cap: Option<f64>,
    sum: bool,
}

impl Default for CrossEntropy {
    fn default() -> Self {
        Self {
            ignored: -100,
            smoothing: 0.0,
            weights: None,
            scale: 1.0,
            soft_cap: None,
            sum: false,
        }
    }
}

impl CrossEntropy {
    /// The mean over the labels that count, without smoothing or weights. A label of −100 does not
    /// count.
    pub fn new() -> Self {
        Self::default()
    }

    /// The label of rows that do not count, in place of −100: padding, or the words of a prompt.
    pub fn ignored_label(mut self, label: i64) -> Self {
        self.ignored = label;
        self
    }

    /// The share, in 0 to 1, of each label that goes to all classes alike.
    pub fn label_smoothing(mut self, share: f64) -> Self {
        self.smoothing = share;
        self
    }

    /// A weight for each class, (classes). The mean is then a weighted one, by the labels' weights.
    pub fn class_weights(mut self, weights: &Tensor) -> Self {
        self.weights = Some(weights.clone());
        self
    }

    /// A factor on the logits, such as Granite's.
    pub fn logit_scale(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// Caps the scaled logits at c·tanh(logit / c), as Gemma 2 does.
    pub fn soft_cap(mut self, cap: f64) -> Self {
        self.soft_cap = Some(cap);
        self
    }

    /// The sum over the labels in place of the mean, for a mean over the tokens of several batches.
    pub fn sum(mut self) -> Self {
        self.sum = true;
        self
    }

    /// The loss of logits (.., classes) with integer labels (..).
    ///
    /// # Errors
    /// If the shapes do not fit, a label is no class, or a setting is out of its range.
    pub fn of_logits(&self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let Some(&classes) = logits.dims().last() else {
            bail!("cross-entropy: the logits have no dimension");
        };
        let labels = self.labels(logits, classes, labels)?;
        if Compute::of(logits) == Compute::Tensors {
            return self.on_tensors(&logits.reshape((labels.rows(), classes))?, &labels);
        }
        let span = profile::forward("cross-entropy");
        let (dtype, shape) = (logits.dtype(), logits.shape().clone());
        let x = copy(&working(logits)?)?;
        let criterion = self.working(&x)?;
        let loss = match Compute::of(&x) {
            Compute::F64 => criterion.loss::<f64>(&x, &labels)?,
            _ => criterion.loss::<f32>(&x, &labels)?,
        };
        span.end([&loss].into_iter());
        record("cross-entropy", [logits], loss, move |grad, _| {
            let on_logits = match Compute::of(&x) {
                Compute::F64 => criterion.gradient::<f64>(&x, &labels, grad)?,
                _ => criterion.gradient::<f32>(&x, &labels, grad)?,
            };
            Ok([Some(on_logits.reshape(&shape)?.to_dtype(dtype)?)])
        })
    }

    /// The loss of the logits x·Wᵀ + b: `xs` is (.., in), `weight` (classes, in), `bias` (classes),
    /// `labels` integers (..).
    ///
    /// Rows whose label does not count are not computed. The forward pass computes the gradients too,
    /// those of the tracked arguments, so that no logits are kept or computed again.
    ///
    /// # Errors
    /// As [`of_logits`](Self::of_logits), and if the weight does not fit.
    pub fn of_linear(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        labels: &Tensor,
    ) -> Result<Tensor> {
        self.of_head(xs, (weight, None), bias, labels)
    }

    /// As [`of_linear`](Self::of_linear). Where there are blocks, the weight stands for these.
    pub(crate) fn of_head(
        &self,
        xs: &Tensor,
        (weight, blocks): (&Tensor, Option<&Blocks>),
        bias: Option<&Tensor>,
        labels: &Tensor,
    ) -> Result<Tensor> {
        let (classes, inputs) = weight.dims2()?;
        if xs.dims().last() != Some(&inputs) || xs.dtype() != weight.dtype() {
            bail!(
                "cross-entropy: a weight of {:?} in {:?} does not fit an input of {:?} in {:?}",
                weight.dims(),
                weight.dtype(),
                xs.dims(),
                xs.dtype()
            );
        }
        if let Some(bias) = bias
            && (bias.dims() != [classes] || bias.dtype() != xs.dtype())
        {
            bail!(
                "cross-entropy: the bias must be {classes} values of {:?}, it is {:?} of {:?}",
                xs.dtype(),
                bias.dims(),
                bias.dtype()
            );
        }
        let labels = self.labels(xs, classes, labels)?;
        if Compute::of(xs) == Compute::Tensors {
            let rows = xs.reshape((labels.rows(), inputs))?;
            let logits = match blocks {
                Some(blocks) => quantised_linear(&rows, blocks, bias)?,
                None => super::linear(&rows, weight, bias)?,
            };
            return self.on_tensors(&logits, &labels);
        }
        let span = profile::forward("linear-cross-entropy");
        let x = copy(&working(xs)?)?.reshape((labels.rows(), inputs))?;
        let criterion = self.working(&x)?;
        let head = cpu::Head {
            weight: match blocks {
                Some(blocks) => cpu::Weight::Blocks(blocks),
                None => cpu::Weight::Full(working(weight)?),
            },
            bias: bias.map(|bias| copy(&working(bias)?)).transpose()?,
            wanted: [
                xs.track_op(),
                weight.track_op(),
                bias.is_some_and(Tensor::track_op),
            ],
        };
        let (loss, grads) = match Compute::of(&x) {
            Compute::F64 => criterion.linear::<f64>(&x, &head, &labels)?,
            _ => criterion.linear::<f32>(&x, &head, &labels)?,
        };
        span.end([&loss].into_iter());
        let (dtype, shape) = (xs.dtype(), xs.shape().clone());
        // The node has a fixed number of arguments: an untracked one stands for a missing bias.
        let absent = weight.detach();
        let args = [xs, weight, bias.unwrap_or(&absent)];
        record("linear-cross-entropy", args, loss, move |grad, _| {
            let factor = grad.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            let mut scaled = Vec::new();
            for of in &grads {
                let of = of.as_ref().map(|of| match factor {
                    1.0 => of.to_dtype(dtype),
                    _ => (of * factor)?.to_dtype(dtype),
                });
                scaled.push(of.transpose()?);
            }
            let mut scaled = scaled.into_iter();
            let mut next = || scaled.next().flatten();
            let on_x = next().map(|on_x| on_x.reshape(&shape)).transpose()?;
            Ok([on_x, next(), next()])
        })
    }

    /// The labels of the rows of `xs`, checked.
    fn labels(&self, xs: &Tensor, classes: usize, labels: &Tensor) -> Result<Labels> {
        if !(0.0..=1.0).contains(&self.smoothing) {
            bail!(
                "cross-entropy: label smoothing must be in 0 to 1, it is {}",
                self.smoothing
            );
        }
        if self.soft_cap.is_some_and(|cap| cap.is_nan() || cap <= 0.0) {
            bail!(
                "cross-entropy: the soft cap must be above 0, it is {:?}",
                self.soft_cap
            );
        }
        if let Some(weights) = &self.weights
            && (weights.dims() != [classes] || !weights.dtype().is_float())
        {
            bail!(
                "cross-entropy: {classes} classes need as many weights, they are {:?} of {:?}",
                weights.dims(),
                weights.dtype()
            );
        }
        if !xs.dtype().is_float() {
            bail!(
                "cross-entropy: the input must be floating-point, it is {:?}",
                xs.dtype()
            );
        }
        let rows = &xs.dims()[..xs.rank() - 1];
        if labels.dims() != rows {
            bail!(
                "cross-entropy: an input of {:?} needs labels of {rows:?}, they are {:?}",
                xs.dims(),
                labels.dims()
            );
        }
        Labels::read(labels, classes, self.ignored)
    }

    /// The settings with the class weights as the kernels read them.
    fn working(&self, x: &Tensor) -> Result<Self> {
        let weights = self.weights.as_ref();
        let weights = weights.map(|weights| copy(&weights.detach().to_dtype(x.dtype())?));
        Ok(Self {
            weights: weights.transpose()?,
            ..self.clone()
        })
    }
}
