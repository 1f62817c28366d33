//! How well texts find those that belong to them.

use super::Options;
use super::columns::Columns;
use super::score::{Measured, Score};
use crate::model::Named;
use crate::texts::{Batched, Text, line};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use lora::data::Pair;
use lora::losses::Similarity;
use lora::metrics::{Retrieval, pearson, spearman};
use lora::models::Created;
use lora::models::encoder::Encoder;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

pub fn measure(
    options: &Options,
    named: &Named,
    created: &Created<Encoder>,
    pairs: &[Pair],
    columns: &Columns,
) -> Result<Measured> {
    let mut texts = Texts::default();
    let mut places = Vec::new();
    for pair in pairs {
        places.push((texts.query(&pair.anchor), texts.document(&pair.positive)));
        if let Some(negative) = &pair.negative {
            texts.document(negative);
        }
    }
    let scores = scores(&options.data, pairs)
        .with_context(|| format!("cannot use --data {}", options.data.display()))?;
    let tokenizer = named.source.tokenizer()?;
    let config = &created.config;
    let batched = |texts: &[Text]| {
        let tokenizer = tokenizer.clone();
        Batched::new(
            texts,
            tokenizer,
            config,
            options.max_length,
            options.batch(),
        )
    };
    let (queries, documents) = (batched(&texts.queries)?, batched(&texts.documents)?);
    let mut relevant = vec![BTreeSet::new(); texts.queries.len()];
    for &(query, document) in &places {
        relevant[query].insert(document);
    }
    let relevant: Vec<Vec<usize>> = relevant
        .into_iter()
        .map(|documents| documents.into_iter().collect())
        .collect();
    let measured = columns.each(named, &created.model, |model| {
        let embed = |batched: &Batched| -> Result<Tensor> {
            let rows = batched.rows(|inputs| model.embed(inputs, false))?;
            Ok(Tensor::new(rows, &Device::Cpu)?)
        };
        let found = Similarity::Cosine.matrix(&embed(&queries)?, &embed(&documents)?)?;
        match &scores {
            Some(scores) => correlations(&found, &places, scores),
            None => searches(&found, &relevant),
        }
    })?;
    let (queries, documents) = (texts.queries.len(), texts.documents.len());
    Ok(Measured {
        on: match scores {
            Some(scores) => format!("{} pairs with scores", scores.len()),
            None => format!("{queries} queries among {documents} texts"),
        },
        scores: measured,
    })
}

/// The texts, each once.
#[derive(Default)]
struct Texts {
    queries: Vec<Text>,
    documents: Vec<Text>,
    known: HashMap<(bool, String), usize>,
}

impl Texts {
    fn query(&mut self, text: &str) -> usize {
        place(&mut self.queries, &mut self.known, false, text)
    }

    fn document(&mut self, text: &str) -> usize {
        place(&mut self.documents, &mut self.known, true, text)
    }
}

fn place(
    texts: &mut Vec<Text>,
    known: &mut HashMap<(bool, String), usize>,
    document: bool,
    text: &str,
) -> usize {
    *known.entry((document, text.into())).or_insert_with(|| {
        texts.push(Text::new(text));
        texts.len() - 1
    })
}

/// How alike the texts of each pair are; `None` if the data does not say.
fn scores(path: &Path, pairs: &[Pair]) -> Result<Option<Vec<f64>>> {
    let all: Vec<Option<f64>> = pairs.iter().map(|pair| pair.score).collect();
    if all.iter().all(Option::is_none) {
        return Ok(None);
    }
    let score = |(index, score): (usize, Option<f64>)| {
        score.with_context(|| {
            let line = line(path, index);
            format!("{line} has no score, others have: give all or none")
        })
    };
    all.into_iter()
        .enumerate()
        .map(score)
        .collect::<Result<_>>()
        .map(Some)
}

fn correlations(found: &Tensor, places: &[(usize, usize)], scores: &[f64]) -> Result<Vec<Score>> {
    let found: Vec<Vec<f32>> = found.to_vec2()?;
    let found: Vec<f64> = places
        .iter()
        .map(|&(query, document)| found[query][document].into())
        .collect();
    Ok(vec![
        Score::number("Pearson", pearson(&found, scores)?),
        Score::number("Spearman", spearman(&found, scores)?),
    ])
}

fn searches(found: &Tensor, relevant: &[Vec<usize>]) -> Result<Vec<Score>> {
    let retrieval = Retrieval::of_scores(found, relevant)?;
    Ok(vec![
        Score::share("accuracy@1", retrieval.hits(1)?),
        Score::share("accuracy@10", retrieval.hits(10)?),
        Score::share("recall@10", retrieval.recall(10)?),
        Score::number("MRR@10", retrieval.mrr(10)?),
        Score::number("NDCG@10", retrieval.ndcg(10)?),
    ])
}
