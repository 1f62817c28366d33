//! The losses of pairs of texts with a label that says how alike they are.

use super::vectors::cosines;
use super::{Reduction, aligned, labels, mse, positive};
use crate::ops::CrossEntropy;
use candle_core::{DType, Result, Tensor, bail};

/// The mean squared difference of the cosines of pairs and their labels.
///
/// `a` and `b` are embeddings (batch, width), `scores` (batch), from −1 to 1 as a cosine is.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let a = Tensor::new(&[[1f32, 0.], [2., 0.]], &Device::Cpu)?;
/// let b = Tensor::new(&[[3f32, 0.], [0., 1.]], &Device::Cpu)?;
/// let loss = lora::losses::cosine_similarity(&a, &b, &Tensor::new(&[1f32, 0.5], &Device::Cpu)?)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 0.125);  // cosines of 1 and 0
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the shapes do not fit, or a label is not finite.
#[doc(alias = "CosineSimilarityLoss")]
pub fn cosine_similarity(a: &Tensor, b: &Tensor, scores: &Tensor) -> Result<Tensor> {
    let what = "cosine similarity";
    let [a, b] = aligned(what, [("first texts", a), ("second texts", b)])?;
    let cosines = cosines(&a, &b, LEAST)?;
    mse(&cosines, &labels(what, scores, &cosines)?, Reduction::Mean)
}

/// The least length of PyTorch's `cosine_similarity`.
const LEAST: f64 = 1e-8;

/// A loss of the order of pairs: of each two, the pair with the higher label should have the higher
/// cosine. Only the labels' order counts, not what they are.
///
/// It is log(1 + Σ exp(scale · (cosᵢ − cosⱼ))) over all i whose label is below that of j.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lora::losses::CoSent;
///
/// let a = Tensor::new(&[[1f32, 0.], [1., 0.]], &Device::Cpu)?;
/// let b = Tensor::new(&[[1f32, 0.], [0., 1.]], &Device::Cpu)?;
/// let loss = |labels: &[f32; 2]| {
///     CoSent::new().loss(&a, &b, &Tensor::new(labels, &Device::Cpu)?)?.to_scalar::<f32>()
/// };
/// assert!(loss(&[5., 1.])? < 1e-6);
/// assert!((loss(&[1., 5.])? - 20.).abs() < 1e-5);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[doc(alias = "CoSENTLoss")]
pub struct CoSent {
    scale: f64,
}

impl Default for CoSent {
    fn default() -> Self {
        Self { scale: 20.0 }
    }
}

impl CoSent {
    /// With a scale of 20.
    pub fn new() -> Self {
        Self::default()
    }

    /// The factor of the cosines in place of 20.
    pub fn scale(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// The loss of embeddings `a` and `b`, (batch, width), with labels (batch). If all labels are alike
    /// it is 0.
    ///
    /// # Errors
    /// If the shapes do not fit, the scale is not above 0, a label is not finite, or there is one pair
    /// alone.
    pub fn loss(&self, a: &Tensor, b: &Tensor, scores: &Tensor) -> Result<Tensor> {
        let what = "CoSENT";
        positive(what, "scale", self.scale)?;
        let [a, b] = aligned(what, [("first texts", a), ("second texts", b)])?;
        let pairs = a.dims()[0];
        if pairs == 1 {
            bail!("{what}: one pair has no other to be compared with: give it more pairs");
        }
        // The least length is that of PyTorch's `normalize`.
        let cosines = cosines(&a, &b, 1e-12)?;
        let labels = labels(what, scores, &cosines)?;
        let differences = |of: &Tensor| {
            let square = (pairs, pairs);
            of.unsqueeze(1)?.broadcast_as(square)? - of.unsqueeze(0)?.broadcast_as(square)?
        };
        let none = Tensor::full(f32::NEG_INFINITY, (pairs, pairs), a.device())?;
        let none = none.to_dtype(a.dtype())?;
        let wrong = differences(&labels)?.lt(0.0)?;
        let wrong = wrong.where_cond(&differences(&cosines)?, &none)?;
        // The cross-entropy of the class with the logit 0 is log(1 + Σ exp) of the others.
        let zero = Tensor::zeros(1, a.dtype(), a.device())?;
        let logits = Tensor::cat(&[zero, wrong.flatten_all()?], 0)?;
        let right = Tensor::zeros(1, DType::I64, a.device())?;
        let criterion = CrossEntropy::new().logit_scale(self.scale);
        criterion.of_logits(&logits.unsqueeze(0)?, &right)
    }
}
