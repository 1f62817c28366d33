//! The batches that a model learns from.

use super::loss::Embedded;
use super::tokens::{Reader, embed};
use super::{Loss, pairs::scored};
use crate::steps::Step;
use anyhow::Result;
use candle_core::{Device, Tensor};
use lora::Lora;
use lora::data::{BatchOptions, Batches, Pair, Tokens};
use lora::models::encoder::Encoder;
use lora::text::Encoding;
use std::collections::HashSet;

/// Pairs to train on, as tokens.
pub(super) struct Lessons<'a> {
    reader: &'a Reader,
    pairs: &'a [Pair],
    anchors: Vec<Encoding>,
    positives: Vec<Encoding>,
    negatives: Vec<Option<Encoding>>,
    batches: Batches,
    loss: Loss,
    /// Texts that are as long as a text may be.
    full: usize,
    /// Pairs with a text that another pair has, too.
    shared: usize,
}

/// A batch as tokens.
pub(super) struct Lesson {
    anchors: Tokens,
    positives: Tokens,
    negatives: Option<Tokens>,
    scores: Option<Tensor>,
}

impl<'a> Lessons<'a> {
    pub(super) fn new(
        reader: &'a Reader,
        pairs: &'a [Pair],
        loss: Loss,
        options: &BatchOptions,
    ) -> Result<Self> {
        let anchors = reader.read(pairs.iter().map(|pair| pair.anchor.as_str()))?;
        let positives = reader.read(pairs.iter().map(|pair| pair.positive.as_str()))?;
        let mut found = reader
            .read(pairs.iter().filter_map(|pair| pair.negative.as_deref()))?
            .into_iter();
        let negatives: Vec<Option<Encoding>> = pairs
            .iter()
            .map(|pair| pair.negative.as_ref().and_then(|_| found.next()))
            .collect();
        let length = |index: usize| {
            let negative = negatives[index].as_ref();
            anchors[index].ids.len()
                + positives[index].ids.len()
                + negative.map_or(0, |negative| negative.ids.len())
        };
        let lengths: Vec<usize> = (0..pairs.len()).map(length).collect();
        let all = anchors.iter().chain(&positives);
        let full = reader.full(all.chain(negatives.iter().flatten()));
        Ok(Self {
            batches: Batches::new(lengths, options)?,
            full,
            shared: pairs.len() - distinct(pairs, 0..pairs.len()).len(),
            reader,
            pairs,
            anchors,
            positives,
            negatives,
            loss,
        })
    }

    /// Steps of the first epoch. Another may have fewer or more where pairs share texts.
    pub(super) fn steps(&self) -> usize {
        let mut batches = self.batches.clone();
        let chosen = std::iter::from_fn(|| batches.next_batch());
        let chosen = chosen.map(|indices| self.chosen(indices));
        chosen.filter(|indices| self.teaches(indices)).count()
    }

    /// The pairs of a batch that are learned from.
    fn chosen(&self, indices: Vec<usize>) -> Vec<usize> {
        match self.loss {
            // A text that fits two rows would be wrong for one of them.
            Loss::Ranking => distinct(self.pairs, indices),
            _ => indices,
        }
    }

    /// What a user should know, where a text has so many tokens at most.
    pub(super) fn notes(&self, most: usize) -> Vec<String> {
        let Self { full, shared, .. } = self;
        let mut notes = Vec::new();
        if *full > 0 {
            notes.push(format!(
                "{full} texts to train on have {most} tokens or more: the rest is cut"
            ));
        }
        if *shared > 0 && self.loss == Loss::Ranking {
            notes.push(format!(
                "{shared} pairs to train on repeat a text of another: a batch takes each text once"
            ));
        }
        notes
    }

    fn teaches(&self, indices: &[usize]) -> bool {
        let negatives = indices
            .iter()
            .filter(|&&index| self.negatives[index].is_some());
        self.loss.teaches(indices.len(), negatives.count())
    }

    /// The next batch; `None` ends an epoch. One that teaches nothing is left out: a pair alone, for example.
    pub(super) fn next(&mut self) -> Result<Option<Step<Lesson>>> {
        while let Some(indices) = self.batches.next_batch() {
            let indices = self.chosen(indices);
            if self.teaches(&indices) {
                return self.lesson(&indices).map(Some);
            }
        }
        Ok(None)
    }

    fn lesson(&self, indices: &[usize]) -> Result<Step<Lesson>> {
        let anchors: Vec<&Encoding> = indices.iter().map(|&index| &self.anchors[index]).collect();
        let positives = indices.iter().map(|&index| &self.positives[index]);
        let positives: Vec<&Encoding> = positives.collect();
        let negatives = indices
            .iter()
            .filter_map(|&index| self.negatives[index].as_ref());
        let negatives: Vec<&Encoding> = negatives.collect();
        let scores: Vec<f32> = indices
            .iter()
            .filter_map(|&index| self.pairs[index].score.map(|score| score as f32))
            .collect();
        let texts = [&anchors, &positives, &negatives];
        let tokens = texts.into_iter().flatten().map(|text| text.ids.len());
        Ok(Step {
            weight: indices.len(),
            tokens: tokens.sum(),
            batch: Lesson {
                anchors: self.reader.batch(&anchors)?,
                positives: self.reader.batch(&positives)?,
                negatives: match negatives.is_empty() {
                    true => None,
                    false => Some(self.reader.batch(&negatives)?),
                },
                scores: match scored(self.pairs) {
                    true => Some(Tensor::new(scores, &Device::Cpu)?),
                    false => None,
                },
            },
        })
    }
}

impl Lesson {
    /// The embeddings that a model in training makes.
    pub(super) fn embed(&self, model: &Lora<Encoder>) -> lora::Result<Embedded> {
        let negatives = self.negatives.as_ref();
        let negatives = negatives.map(|negatives| embed(model, negatives, true));
        Ok(Embedded {
            anchors: embed(model, &self.anchors, true)?,
            positives: embed(model, &self.positives, true)?,
            negatives: negatives.transpose()?,
            scores: self.scores.clone(),
        })
    }
}

/// Those of the pairs that share no text with one before.
fn distinct(pairs: &[Pair], indices: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let mut seen = HashSet::new();
    let is_new = |&index: &usize| {
        let Pair {
            anchor, positive, ..
        } = &pairs[index];
        // Both are kept in mind in any case.
        let new = !seen.contains(anchor.as_str()) && !seen.contains(positive.as_str());
        if new {
            seen.extend([anchor.as_str(), positive.as_str()]);
        }
        new
    };
    indices.into_iter().filter(is_new).collect()
}
