//! What is learned of the pairs.

use super::pairs::scored;
use anyhow::{Result, bail};
use candle_core::Tensor;
use clap::ValueEnum;
use lora::data::Pair;
use lora::losses::{CoSent, Distance, MultipleNegativesRanking, Triplet, cosine_similarity};

/// By how much a triplet's negative should have the lower cosine.
const MARGIN: f64 = 0.3;

/// A loss of pairs of texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Loss {
    /// MultipleNegativesRanking: to tell each query's document from those of the batch, and from the negatives
    /// that the pairs have
    #[default]
    Ranking,
    /// That the cosine of a pair is its `score`, from -1 to 1
    Cosine,
    /// That the document is closer than the pair's `negative`, by 0.3 in cosine
    Triplet,
    /// CoSENT: that pairs with a higher `score` have a higher cosine
    Cosent,
}

/// The embeddings of a batch of pairs, (pairs, width).
pub(super) struct Embedded {
    pub(super) anchors: Tensor,
    pub(super) positives: Tensor,
    /// Of the pairs that have one.
    pub(super) negatives: Option<Tensor>,
    /// (pairs).
    pub(super) scores: Option<Tensor>,
}

impl Loss {
    /// As the command line has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ranking => "ranking",
            Self::Cosine => "cosine",
            Self::Triplet => "triplet",
            Self::Cosent => "cosent",
        }
    }

    /// Refuses pairs that lack what the loss learns from.
    pub(super) fn check(self, pairs: &[Pair]) -> Result<()> {
        let name = self.name();
        let with_negative = pairs.iter().filter(|pair| pair.negative.is_some()).count();
        match (self, scored(pairs)) {
            (Self::Ranking | Self::Triplet, true) => bail!(
                "--loss {name} takes each pair for a match, but the pairs have a `score`: use --loss cosine or \
                 cosent, or keep the matches without the scores"
            ),
            (Self::Cosine | Self::Cosent, false) => bail!(
                "--loss {name} learns from a `score` of each pair, and the pairs have none: use --loss ranking, \
                 for which each pair is a match"
            ),
            (Self::Triplet, _) if with_negative < pairs.len() => bail!(
                "--loss {name} learns from a `negative` of each pair, {with_negative} of {} pairs have one: use \
                 --loss ranking, which takes negatives where there are some",
                pairs.len()
            ),
            (Self::Cosine, _) => {
                let scores = pairs.iter().filter_map(|pair| pair.score);
                match scores.into_iter().find(|score| score.abs() > 1.0) {
                    Some(score) => bail!(
                        "--loss {name} takes scores from -1 to 1, as a cosine is, and one is {score}: use \
                         --loss cosent, for which their order alone counts"
                    ),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Whether so many pairs with so many negatives teach anything.
    pub(super) fn teaches(self, pairs: usize, negatives: usize) -> bool {
        match self {
            Self::Ranking => pairs + negatives > 1,
            Self::Cosent => pairs > 1,
            Self::Cosine | Self::Triplet => pairs > 0,
        }
    }

    /// The loss of a batch.
    pub(super) fn of(self, batch: &Embedded) -> candle_core::Result<Tensor> {
        let Embedded {
            anchors, positives, ..
        } = batch;
        match (self, &batch.negatives, &batch.scores) {
            (Self::Cosine, _, Some(scores)) => cosine_similarity(anchors, positives, scores),
            (Self::Cosent, _, Some(scores)) => CoSent::new().loss(anchors, positives, scores),
            (Self::Triplet, Some(negatives), _) => Triplet::new()
                .distance(Distance::Cosine)
                .margin(MARGIN)
                .loss(anchors, positives, negatives),
            (Self::Ranking, negatives, _) => {
                MultipleNegativesRanking::new().loss(anchors, positives, negatives.as_ref())
            }
            _ => candle_core::bail!("the pairs lack what the loss learns from"),
        }
    }
}
