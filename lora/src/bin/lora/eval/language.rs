//! How surprised a language model is.

use super::Options;
use super::columns::Columns;
use super::score::{Measured, Score};
use crate::model::Named;
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use lora::data::{Pad, Record, Sequence, SequenceOptions, sequences};
use lora::metrics::Perplexity;
use lora::models::Created;
use lora::models::decoder::{Decoder, LoraDecoder};
use std::cmp::Reverse;

/// Longer texts take much memory.
const LONGEST: usize = 2048;

pub fn measure(
    options: &Options,
    named: &Named,
    created: &Created<Decoder>,
    records: &[Record],
    columns: &Columns,
) -> Result<Measured> {
    let tokenizer = named.source.tokenizer()?;
    let most = options
        .max_length
        .unwrap_or(LONGEST)
        .min(created.config.max_position_embeddings);
    let mut sequences = sequences(&tokenizer, records, &SequenceOptions::new(most))
        .with_context(|| format!("cannot use --data {}", options.data.display()))?;
    if sequences.is_empty() {
        bail!(
            "--data {} has no token to measure within {most} tokens: say a longer --max-length",
            options.data.display()
        );
    }
    sequences.sort_by_key(|sequence| Reverse(sequence.len()));
    let tokens: usize = sequences.iter().map(Sequence::learned).sum();
    let pad = Pad::new(tokenizer.pad());
    let scores = columns.each(named, &created.model, |model| {
        let perplexity = perplexity(model, &sequences, pad, options.batch())?;
        Ok(vec![
            Score::number("loss", perplexity.loss()),
            Score::number("perplexity", perplexity.value()),
        ])
    })?;
    Ok(Measured {
        on: format!("{} examples, {tokens} tokens", sequences.len()),
        scores,
    })
}

fn perplexity(
    model: &LoraDecoder,
    sequences: &[Sequence],
    pad: Pad,
    batch: usize,
) -> Result<Perplexity> {
    let mut perplexity = Perplexity::new();
    for rows in sequences.chunks(batch) {
        let rows: Vec<&Sequence> = rows.iter().collect();
        let batch = pad.sequences(&rows, &Device::Cpu)?;
        let loss = model.loss(&batch.ids, Some(&batch.mask), &batch.labels)?;
        perplexity.add(loss.to_dtype(DType::F64)?.to_scalar()?, batch.learned);
    }
    if !perplexity.loss().is_finite() {
        bail!("the loss is not finite: the weights or the adapter are damaged, or f16 overflows");
    }
    Ok(perplexity)
}
