//! The loss that tells each text's partner from those of the others.

use super::vectors::unit;
use super::{embeddings, positive};
use crate::ops::{self, CrossEntropy};
use candle_core::{Result, Tensor, bail};

/// How alike two embeddings are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Similarity {
    /// The cosine of their angle.
    #[default]
    Cosine,
    /// Their dot product, which also grows with their lengths. A scale of 1 goes with it.
    Dot,
}

impl Similarity {
    /// The similarity of each row of `a`, (n, width), with each row of `b`, (m, width): (n, m).
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use lora::losses::Similarity;
    ///
    /// let query = Tensor::new(&[[3f32, 0.]], &Device::Cpu)?;
    /// let documents = Tensor::new(&[[2f32, 0.], [0., 1.]], &Device::Cpu)?;
    /// let scores = |of: Similarity| of.matrix(&query, &documents)?.to_vec2::<f32>();
    /// assert_eq!(scores(Similarity::Cosine)?, [[1., 0.]]);
    /// assert_eq!(scores(Similarity::Dot)?, [[6., 0.]]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// If one is no matrix with values, or width or dtype differ.
    pub fn matrix(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let [a, b] = embeddings("similarity", [("rows", a), ("columns", b)])?;
        self.of(&a, &b)
    }

    fn of(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        match self {
            // The least length is that of PyTorch's `normalize`.
            Self::Cosine => ops::linear(&unit(a, 1e-12)?, &unit(b, 1e-12)?, None),
            Self::Dot => ops::linear(a, b, None),
        }
    }
}

/// The cross-entropy of finding each text's partner among those of the whole batch.
///
/// For each anchor, such as a question, its own positive is the right class; the positives of all other
/// rows and the hard negatives are the wrong ones. A text that fits two rows of a batch is wrong for one
/// of them, so no batch should hold a text twice. Larger batches teach more.
///
/// It is also known as InfoNCE, or loss with in-batch negatives.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lora::losses::{MultipleNegativesRanking, Similarity};
///
/// let same = Tensor::ones((4, 8), candle_core::DType::F32, &Device::Cpu)?;
/// let ranking = MultipleNegativesRanking::new().similarity(Similarity::Dot).scale(1.0).symmetric();
/// let loss = ranking.loss(&same, &same, None)?.to_scalar::<f32>()?;
/// assert!((loss - 4f32.ln()).abs() < 1e-6);  // one of four, at random
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[doc(alias = "MultipleNegativesRankingLoss")]
#[doc(alias = "InfoNCE")]
pub struct MultipleNegativesRanking {
    scale: f64,
    similarity: Similarity,
    symmetric: bool,
}

impl Default for MultipleNegativesRanking {
    fn default() -> Self {
        Self {
            scale: 20.0,
            similarity: Similarity::Cosine,
            symmetric: false,
        }
    }
}

impl MultipleNegativesRanking {
    /// By cosine times 20, from anchors to positives.
    pub fn new() -> Self {
        Self::default()
    }

    /// The factor of the similarities in place of 20: 1 / temperature.
    pub fn scale(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// The similarity in place of the cosine.
    pub fn similarity(mut self, similarity: Similarity) -> Self {
        self.similarity = similarity;
        self
    }

    /// The mean with the other direction: for each positive its own anchor is the right one.
    pub fn symmetric(mut self) -> Self {
        self.symmetric = true;
        self
    }

    /// The loss of `anchors` (batch, width), `positives` (batch, width), a row for each anchor, and hard
    /// `negatives` (any, width), which no anchor should be close to.
    ///
    /// # Errors
    /// If the shapes do not fit, the scale is not above 0, or there is one row without a negative: it
    /// has nothing to be told apart from.
    pub fn loss(
        &self,
        anchors: &Tensor,
        positives: &Tensor,
        negatives: Option<&Tensor>,
    ) -> Result<Tensor> {
        let what = "multiple negatives ranking";
        positive(what, "scale", self.scale)?;
        let hard = |negatives| {
            let named = [("positives", positives), ("negatives", negatives)];
            embeddings(what, named).map(|[_, negatives]| negatives)
        };
        let hard = negatives.map(hard).transpose()?;
        let [anchors, positives] =
            super::aligned(what, [("anchors", anchors), ("positives", positives)])?;
        let batch = anchors.dims()[0];
        let documents = match &hard {
            Some(negatives) => Tensor::cat(&[&positives, negatives], 0)?,
            None if batch == 1 => bail!(
                "{what}: a batch of one pair has nothing to be told apart from: give it more pairs or hard \
                 negatives"
            ),
            None => positives.clone(),
        };
        let own = Tensor::arange(0, batch as i64, anchors.device())?;
        let criterion = CrossEntropy::new().logit_scale(self.scale);
        let forward = criterion.of_logits(&self.similarity.of(&anchors, &documents)?, &own)?;
        match self.symmetric {
            true => {
                let back = self.similarity.of(&positives, &anchors)?;
                (forward + criterion.of_logits(&back, &own)?)? * 0.5
            }
            false => Ok(forward),
        }
    }
}
