//! The search on held-out pairs: how good it is, and what it finds.

use super::pairs::scored;
use super::report::{Quality, ScoreQuality, SearchQuality};
use super::tokens::Reader;
use anyhow::Result;
use candle_core::Tensor;
use lora::Lora;
use lora::data::Pair;
use lora::losses::Similarity;
use lora::metrics::{Retrieval, pearson, spearman};
use lora::models::encoder::Encoder;
use lora::text::Encoding;
use std::collections::HashMap;

/// The held-out pairs, as queries and documents, each text once.
pub(super) struct Search {
    pub(super) queries: Texts,
    pub(super) documents: Texts,
    /// For each query the documents that answer it.
    relevant: Vec<Vec<usize>>,
    /// For each pair its query, its document and its score, where the pairs have scores.
    scores: Vec<(usize, usize, f64)>,
}

/// Different texts.
#[derive(Default)]
pub(super) struct Texts {
    pub(super) texts: Vec<String>,
    pub(super) tokens: Vec<Encoding>,
    numbers: HashMap<String, usize>,
}

/// What a model makes of the held-out pairs.
pub(super) struct Outcome {
    pub(super) quality: Quality,
    /// For each query the document that is found first, and the place of the first right one, from 0.
    pub(super) found: Vec<(usize, usize)>,
    /// Of queries and documents.
    pub(super) embeddings: Tensor,
}

impl Search {
    pub(super) fn new(reader: &Reader, pairs: &[Pair]) -> Result<Self> {
        let (mut queries, mut documents) = (Texts::default(), Texts::default());
        let (mut relevant, mut scores) = (Vec::<Vec<usize>>::new(), Vec::new());
        for pair in pairs {
            let (query, document) = (queries.add(&pair.anchor), documents.add(&pair.positive));
            relevant.resize_with(queries.texts.len(), Vec::new);
            if !relevant[query].contains(&document) {
                relevant[query].push(document);
            }
            if let Some(negative) = &pair.negative {
                documents.add(negative);
            }
            scores.extend(pair.score.map(|score| (query, document, score)));
        }
        for texts in [&mut queries, &mut documents] {
            texts.tokens = reader.read(texts.texts.iter().map(String::as_str))?;
        }
        Ok(Self {
            queries,
            documents,
            relevant,
            scores: if scored(pairs) { scores } else { Vec::new() },
        })
    }

    /// What the model makes of the pairs.
    pub(super) fn run(&self, reader: &Reader, model: &Lora<Encoder>) -> Result<Outcome> {
        let queries = reader.embed(model, &self.queries.tokens)?;
        let documents = reader.embed(model, &self.documents.tokens)?;
        let scores = Similarity::Cosine.matrix(&queries, &documents)?;
        let rows: Vec<Vec<f32>> = scores.to_vec2()?;
        let embeddings = Tensor::cat(&[queries, documents], 0)?;
        if !self.scores.is_empty() {
            let cosines = self.scores.iter();
            let cosines = cosines.map(|&(query, document, _)| f64::from(rows[query][document]));
            let (cosines, wanted): (Vec<f64>, Vec<f64>) = cosines
                .zip(self.scores.iter().map(|&(.., score)| score))
                .unzip();
            return Ok(Outcome {
                quality: Quality::Scores(ScoreQuality {
                    pairs: wanted.len(),
                    pearson: pearson(&cosines, &wanted)?,
                    spearman: spearman(&cosines, &wanted)?,
                }),
                found: Vec::new(),
                embeddings,
            });
        }
        let retrieval = Retrieval::of_scores(&scores, &self.relevant)?;
        let found = rows.iter().zip(&self.relevant);
        Ok(Outcome {
            quality: Quality::Search(SearchQuality {
                queries: self.queries.texts.len(),
                documents: self.documents.texts.len(),
                recall_1: retrieval.recall(1)?,
                recall_10: retrieval.recall(10)?,
                mrr: retrieval.mrr(10)?,
                ndcg: retrieval.ndcg(10)?,
            }),
            found: found.map(|(row, right)| first(row, right)).collect(),
            embeddings,
        })
    }
}

/// The document with the highest score, and the place of the first that is right.
fn first(scores: &[f32], right: &[usize]) -> (usize, usize) {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Stable, so that documents with the same score come in their order.
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let place = order.iter().position(|document| right.contains(document));
    (order[0], place.unwrap_or(scores.len()))
}

impl Texts {
    fn add(&mut self, text: &str) -> usize {
        if let Some(&number) = self.numbers.get(text) {
            return number;
        }
        self.texts.push(text.into());
        self.numbers.insert(text.into(), self.texts.len() - 1);
        self.texts.len() - 1
    }
}
