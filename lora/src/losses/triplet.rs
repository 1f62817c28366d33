//! The loss of texts that are closer to one text than to another.

use super::aligned;
use super::vectors::{above_zero, abs, cosines, euclidean};
use candle_core::{D, Result, Tensor, bail};

/// How far two embeddings are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distance {
    /// 1 − the cosine of their angle.
    Cosine,
    /// The length of their difference.
    #[default]
    Euclidean,
    /// The sum of the absolute differences of their values.
    Manhattan,
}

impl Distance {
    /// The distances of the rows, (batch).
    fn of(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        match self {
            // The least length is that of PyTorch's `normalize`.
            Self::Cosine => 1.0 - cosines(a, b, 1e-12)?,
            Self::Euclidean => euclidean(&(a - b)?),
            Self::Manhattan => abs(&(a - b)?)?.sum(D::Minus1),
        }
    }
}

/// The mean of max(0, d(anchor, positive) − d(anchor, negative) + margin).
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lora::losses::{Distance, Triplet};
///
/// let [anchor, close, far] = [[[0f32, 0.]], [[3., 4.]], [[6., 8.]]]
///     .map(|x| Tensor::new(&x, &Device::Cpu).unwrap());
/// let loss = |triplet: Triplet| triplet.loss(&anchor, &close, &far)?.to_scalar::<f32>();
/// assert_eq!(loss(Triplet::new().margin(6.0))?, 1.0);  // 5 − 10 + 6
/// assert_eq!(loss(Triplet::new().margin(6.0).distance(Distance::Manhattan))?, 0.0);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[doc(alias = "TripletLoss")]
pub struct Triplet {
    margin: f64,
    distance: Distance,
}

impl Default for Triplet {
    fn default() -> Self {
        Self {
            margin: 5.0,
            distance: Distance::Euclidean,
        }
    }
}

impl Triplet {
    /// With a margin of 5 in euclidean distance. Embeddings of length 1 are at most 2 apart: a margin
    /// below 1 goes with them, and with the cosine.
    pub fn new() -> Self {
        Self::default()
    }

    /// By how much the negative should be farther from the anchor than the positive.
    pub fn margin(mut self, margin: f64) -> Self {
        self.margin = margin;
        self
    }

    /// The distance in place of the euclidean one.
    pub fn distance(mut self, distance: Distance) -> Self {
        self.distance = distance;
        self
    }

    /// The loss of embeddings (batch, width), each a row for each anchor.
    ///
    /// # Errors
    /// If the shapes do not fit, or the margin is not finite or below 0.
    pub fn loss(&self, anchors: &Tensor, positives: &Tensor, negatives: &Tensor) -> Result<Tensor> {
        let what = "triplet loss";
        if !(self.margin.is_finite() && self.margin >= 0.0) {
            bail!(
                "{what}: the margin must be at least 0, it is {}",
                self.margin
            );
        }
        let [anchors, positives, negatives] = aligned(
            what,
            [
                ("anchors", anchors),
                ("positives", positives),
                ("negatives", negatives),
            ],
        )?;
        let close = self.distance.of(&anchors, &positives)?;
        let far = self.distance.of(&anchors, &negatives)?;
        above_zero(&((close - far)? + self.margin)?)?.mean_all()
    }
}
