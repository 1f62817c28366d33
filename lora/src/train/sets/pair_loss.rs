//! What is learned of pairs of texts.

use crate::data::Pair;
use crate::losses::{CoSent, Distance, MultipleNegativesRanking, Triplet, cosine_similarity};
use crate::{Error, Result};
use candle_core::{Tensor, bail};
use serde::{Deserialize, Serialize};
use std::fmt;

/// By how much a triplet's negative should have the lower cosine.
const MARGIN: f64 = 0.3;

/// What is learned of pairs of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PairLoss {
    /// To tell each anchor's text from those of the batch, and from the negatives that pairs have:
    /// [`MultipleNegativesRanking`].
    Ranking,
    /// That the cosine of a pair is its score, from -1 to 1: [`cosine_similarity`].
    Cosine,
    /// That the positive is closer than the pair's negative, by 0.3 in cosine: [`Triplet`].
    Triplet,
    /// That pairs with a higher score have a higher cosine: [`CoSent`].
    Cosent,
}

/// The embeddings of a batch of pairs, (pairs, width).
pub(super) struct Embedded<'a> {
    pub anchors: Tensor,
    pub positives: Tensor,
    /// Of the pairs that have one.
    pub negatives: Option<Tensor>,
    /// (pairs).
    pub scores: Option<&'a Tensor>,
}

impl PairLoss {
    /// The loss that pairs are made for: [`Cosent`](Self::Cosent) where they have scores, else
    /// [`Ranking`](Self::Ranking).
    pub fn of(pairs: &[Pair]) -> Self {
        match pairs.iter().any(|pair| pair.score.is_some()) {
            true => Self::Cosent,
            false => Self::Ranking,
        }
    }

    /// Refuses pairs that lack what the loss learns from.
    pub(super) fn check(self, pairs: &[Pair]) -> Result<()> {
        self.problem(pairs)
            .map_or(Ok(()), |problem| Err(Error::Data(vec![problem])))
    }

    fn problem(self, pairs: &[Pair]) -> Option<String> {
        let (all, count) = (pairs.len(), |has: fn(&Pair) -> bool| {
            pairs.iter().filter(|pair| has(pair)).count()
        });
        let negatives = count(|pair| pair.negative.is_some());
        let scores = count(|pair| pair.score.is_some());
        if scores > 0 && scores < all {
            return Some(format!(
                "{scores} of {all} pairs have a `score`: give all of them one, or none"
            ));
        }
        match (self, scores > 0) {
            (Self::Ranking | Self::Triplet, true) => Some(format!(
                "the loss `{self}` takes each pair for a match, but the pairs have a `score`: use `cosine` or \
                 `cosent`, or keep the matches without the scores"
            )),
            (Self::Cosine | Self::Cosent, false) => Some(format!(
                "the loss `{self}` learns from a `score` of each pair, and the pairs have none: use `ranking`, \
                 for which each pair is a match"
            )),
            (Self::Triplet, _) if negatives < all => Some(format!(
                "the loss `{self}` learns from a `negative` of each pair, {negatives} of {all} pairs have one: \
                 use `ranking`, which takes negatives where there are some"
            )),
            (Self::Cosine, _) => {
                let mut scores = pairs.iter().filter_map(|pair| pair.score);
                let score = scores.find(|score| !(-1.0..=1.0).contains(score))?;
                Some(format!(
                    "the loss `{self}` takes scores from -1 to 1, as a cosine is, and one is {score}: use \
                     `cosent`, for which their order alone counts"
                ))
            }
            _ => None,
        }
    }

    /// Whether so many pairs with so many negatives teach anything.
    pub(super) fn teaches(self, pairs: usize, negatives: usize) -> bool {
        match self {
            Self::Ranking => pairs > 0 && pairs + negatives > 1,
            Self::Cosent => pairs > 1,
            Self::Cosine | Self::Triplet => pairs > 0,
        }
    }

    /// The loss of a batch.
    pub(super) fn of_embedded(self, batch: &Embedded<'_>) -> candle_core::Result<Tensor> {
        let (anchors, positives) = (&batch.anchors, &batch.positives);
        match (self, &batch.negatives, batch.scores) {
            (Self::Cosine, _, Some(scores)) => cosine_similarity(anchors, positives, scores),
            (Self::Cosent, _, Some(scores)) => CoSent::new().loss(anchors, positives, scores),
            (Self::Triplet, Some(negatives), _) => Triplet::new()
                .distance(Distance::Cosine)
                .margin(MARGIN)
                .loss(anchors, positives, negatives),
            (Self::Ranking, negatives, _) => {
                MultipleNegativesRanking::new().loss(anchors, positives, negatives.as_ref())
            }
            _ => bail!("the pairs lack what the loss learns from"),
        }
    }
}

impl fmt::Display for PairLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ranking => "ranking",
            Self::Cosine => "cosine",
            Self::Triplet => "triplet",
            Self::Cosent => "cosent",
        })
    }
}
