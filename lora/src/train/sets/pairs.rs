//! Pairs of texts, for sentence embeddings.

use super::pair_loss::Embedded;
use super::{Dataset, PairLoss, longest_first};
use crate::data::{Pad, Pair, Tokens};
use crate::losses::Similarity;
use crate::metrics::{Retrieval, pearson, spearman};
use crate::models::encoder::{Inputs, LoraEncoder};
use crate::text::{Encoding, Tokenizer};
use crate::train::{Best, Loss, Metrics};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use indexmap::IndexSet;
use std::collections::HashSet;

/// Pairs of texts, for an [`Encoder`](crate::models::encoder::Encoder) that makes sentence embeddings. The
/// metrics are those of a search, in which each anchor is to find its text among all of the data:
/// `recall@1`, `recall@10`, `mrr@10`, `ndcg@10`. Where the pairs have scores, the metrics are `pearson` and
/// `spearman`, the correlation of cosines and scores.
#[derive(Clone, Debug)]
pub struct TextPairs {
    pairs: Vec<Pair>,
    anchors: Vec<Encoding>,
    positives: Vec<Encoding>,
    negatives: Vec<Option<Encoding>>,
    pad: Pad,
    loss: PairLoss,
    scored: bool,
}

/// Some of [`TextPairs`], as tokens.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PairBatch {
    /// The texts that are searched with.
    pub anchors: Tokens,
    /// The texts to be found.
    pub positives: Tokens,
    /// Those not to be found, of the pairs that have one.
    pub negatives: Option<Tokens>,
    /// The scores, (pairs), f32, if the pairs have some.
    pub scores: Option<Tensor>,
}

impl TextPairs {
    /// The pairs as tokens. The tokenizer decides where long texts are cut ([`Tokenizer::truncate_to`]).
    ///
    /// # Errors
    /// If a text has no tokens, some pairs have a score and others not, or the pairs lack what the loss learns
    /// from.
    pub fn new(tokenizer: &Tokenizer, pairs: Vec<Pair>, loss: PairLoss) -> Result<Self> {
        loss.check(&pairs)?;
        let read = |texts: Vec<&str>| tokenizer.encode_batch(texts);
        let negatives: Vec<&str> = pairs
            .iter()
            .filter_map(|pair| pair.negative.as_deref())
            .collect();
        let mut negatives = read(negatives)?.into_iter();
        let mut next = |pair: &Pair| pair.negative.as_ref().and_then(|_| negatives.next());
        Ok(Self {
            anchors: read(pairs.iter().map(|pair| pair.anchor.as_str()).collect())?,
            positives: read(pairs.iter().map(|pair| pair.positive.as_str()).collect())?,
            negatives: pairs.iter().map(&mut next).collect(),
            pad: Pad::new(tokenizer.pad()).side(tokenizer.padding_side()),
            scored: pairs.iter().any(|pair| pair.score.is_some()),
            pairs,
            loss,
        })
    }

    /// The pairs of a batch that are learned from.
    fn chosen(&self, numbers: &[usize]) -> Vec<usize> {
        match self.loss {
            // A text that fits two rows would be wrong for one of them.
            PairLoss::Ranking => distinct(&self.pairs, numbers),
            _ => numbers.to_vec(),
        }
    }

    fn tokens<'a>(&self, rows: impl IntoIterator<Item = &'a Encoding>) -> Result<Tokens> {
        let rows: Vec<&Encoding> = rows.into_iter().collect();
        self.pad.tokens(&rows, &Device::Cpu)
    }

    /// The embeddings of all texts, (texts, width).
    fn embed_all(
        &self,
        model: &LoraEncoder,
        texts: &[&Encoding],
        at_once: usize,
    ) -> Result<Tensor> {
        let lengths: Vec<usize> = texts.iter().map(|text| text.ids.len()).collect();
        let order = longest_first(&lengths);
        let mut parts = Vec::new();
        for numbers in order.chunks(at_once.max(1)) {
            let batch = self.tokens(numbers.iter().map(|&number| texts[number]))?;
            parts.push(embed(model, &batch, false)?.detach());
        }
        let mut places = vec![0u32; texts.len()];
        for (place, &number) in (0..).zip(&order) {
            places[number] = place;
        }
        let places = Tensor::new(places, &Device::Cpu)?;
        Ok(Tensor::cat(&parts, 0)?.index_select(&places, 0)?)
    }
}

impl Dataset for TextPairs {
    type Model = LoraEncoder;
    type Batch = PairBatch;

    fn lengths(&self) -> Vec<usize> {
        let length = |text: &Encoding| text.ids.len();
        let texts = self
            .anchors
            .iter()
            .zip(&self.positives)
            .zip(&self.negatives);
        texts
            .map(|((anchor, positive), negative)| {
                length(anchor) + length(positive) + negative.as_ref().map_or(0, length)
            })
            .collect()
    }

    fn batch(&self, numbers: &[usize]) -> Result<PairBatch> {
        let numbers = self.chosen(numbers);
        let of = |texts: &'_ [Encoding]| self.tokens(numbers.iter().map(|&number| &texts[number]));
        let negatives = numbers
            .iter()
            .filter_map(|&number| self.negatives[number].as_ref());
        let negatives: Vec<&Encoding> = negatives.collect();
        let scores = numbers
            .iter()
            .filter_map(|&number| self.pairs[number].score);
        let scores = Tensor::from_iter(scores.map(|score| score as f32), &Device::Cpu);
        Ok(PairBatch {
            anchors: of(&self.anchors)?,
            positives: of(&self.positives)?,
            negatives: match negatives.is_empty() {
                true => None,
                false => Some(self.tokens(negatives)?),
            },
            scores: self.scored.then_some(scores).transpose()?,
        })
    }

    fn teaches(&self, numbers: &[usize]) -> bool {
        let numbers = self.chosen(numbers);
        let has_negative = |&&number: &&usize| self.negatives[number].is_some();
        let negatives = numbers.iter().filter(has_negative).count();
        self.loss.teaches(numbers.len(), negatives)
    }

    fn loss(&self, model: &LoraEncoder, batch: &PairBatch) -> Result<Loss> {
        let negatives = batch.negatives.as_ref();
        let negatives = negatives.map(|negatives| embed(model, negatives, true));
        let embedded = Embedded {
            anchors: embed(model, &batch.anchors, true)?,
            positives: embed(model, &batch.positives, true)?,
            negatives: negatives.transpose()?,
            scores: batch.scores.as_ref(),
        };
        let pairs = batch.anchors.ids.dim(0)?;
        Ok(Loss::over_examples(
            self.loss.of_embedded(&embedded)?,
            pairs,
        ))
    }

    fn evaluate(&self, model: &LoraEncoder, at_once: usize) -> Result<Metrics> {
        if self.pairs.is_empty() {
            let problem = "there is no pair to measure with";
            return Err(Error::Data(vec![problem.into()]));
        }
        let (mut queries, mut documents) = (IndexSet::new(), IndexSet::new());
        let mut places = Vec::new();
        for pair in &self.pairs {
            let (query, _) = queries.insert_full(pair.anchor.as_str());
            let (document, _) = documents.insert_full(pair.positive.as_str());
            places.push((query, document));
        }
        // Each text once, with the tokens of the pair that first has it.
        let mut query_rows = vec![None; queries.len()];
        let mut document_rows = vec![None; documents.len()];
        for (&(query, document), number) in places.iter().zip(0..) {
            query_rows[query].get_or_insert(&self.anchors[number]);
            document_rows[document].get_or_insert(&self.positives[number]);
        }
        for (pair, tokens) in self.pairs.iter().zip(&self.negatives) {
            if let (Some(text), Some(tokens)) = (&pair.negative, tokens)
                && documents.insert(text.as_str())
            {
                document_rows.push(Some(tokens));
            }
        }
        let [query_rows, document_rows] =
            [query_rows, document_rows].map(|rows| rows.into_iter().flatten().collect::<Vec<_>>());
        let queries = self.embed_all(model, &query_rows, at_once)?;
        let documents = self.embed_all(model, &document_rows, at_once)?;
        let scores = Similarity::Cosine.matrix(&queries, &documents)?;
        match self.scored {
            true => self.correlation(&scores, &places),
            false => search(&scores, &places),
        }
    }

    fn best(&self) -> Best {
        Best::Highest(if self.scored { "spearman" } else { "ndcg@10" }.into())
    }
}

impl TextPairs {
    fn correlation(&self, cosines: &Tensor, places: &[(usize, usize)]) -> Result<Metrics> {
        let rows: Vec<Vec<f32>> = cosines.to_vec2()?;
        let cosines = places.iter();
        let cosines = cosines.map(|&(query, document)| f64::from(rows[query][document]));
        let cosines: Vec<f64> = cosines.collect();
        let wanted: Vec<f64> = self.pairs.iter().filter_map(|pair| pair.score).collect();
        if wanted.iter().all(|score| *score == wanted[0]) {
            let problem = format!(
                "all of the {} pairs to measure with have the same score, with which nothing correlates: measure \
                 with others",
                wanted.len()
            );
            return Err(Error::Data(vec![problem]));
        }
        // Where all texts have the same embedding there is no correlation.
        let or_none = |number: f64| if number.is_finite() { number } else { 0.0 };
        let pearson = or_none(pearson(&cosines, &wanted)?);
        let spearman = or_none(spearman(&cosines, &wanted)?);
        Ok(Metrics::from([
            ("pearson", pearson),
            ("spearman", spearman),
        ]))
    }
}

fn search(scores: &Tensor, places: &[(usize, usize)]) -> Result<Metrics> {
    let mut relevant: Vec<Vec<usize>> = vec![Vec::new(); scores.dim(0)?];
    for &(query, document) in places {
        if !relevant[query].contains(&document) {
            relevant[query].push(document);
        }
    }
    let retrieval = Retrieval::of_scores(scores, &relevant)?;
    Ok(Metrics::from([
        ("recall@1", retrieval.recall(1)?),
        ("recall@10", retrieval.recall(10)?),
        ("mrr@10", retrieval.mrr(10)?),
        ("ndcg@10", retrieval.ndcg(10)?),
    ]))
}

/// The embeddings of a batch, (batch, width).
fn embed(model: &LoraEncoder, tokens: &Tokens, train: bool) -> candle_core::Result<Tensor> {
    model.embed(&Inputs::new(&tokens.ids).mask(&tokens.mask), train)
}

/// Those of the pairs that share no text with one before.
fn distinct(pairs: &[Pair], numbers: &[usize]) -> Vec<usize> {
    let mut seen = HashSet::new();
    let is_new = |number: &usize| {
        let Pair {
            anchor, positive, ..
        } = &pairs[*number];
        // Both are kept in mind in any case.
        let new = !seen.contains(anchor.as_str()) && !seen.contains(positive.as_str());
        if new {
            seen.extend([anchor.as_str(), positive.as_str()]);
        }
        new
    };
    numbers.iter().copied().filter(is_new).collect()
}
