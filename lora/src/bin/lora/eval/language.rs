//! How surprised a language model is.

use super::Options;
use super::columns::Columns;
use super::score::{Measured, Score};
use crate::model::Named;
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use lora::data::{Pad, Sequence, SequenceOptions, read_sequences};
use lora::metrics::Perplexity;
use lora::models::Created;
use lora::models::decoder::{Decoder, LoraDecoder};
use lora::text::Tokenizer;
use std::cmp::Reverse;

/// Longer texts take much memory.
const LONGEST: usize = 2048;

/// Texts, completions and conversations.
///
/// # Errors
/// If the tokenizer or the model does not fit them.
pub fn of_records(
    options: &Options,
    named: &Named,
    created: &Created<Decoder>,
    columns: &Columns,
) -> Result<Measured> {
    let tokenizer = named.source.tokenizer()?;
    let sequence_options = SequenceOptions::new(longest(options, created));
    let mut sequences = read_sequences(&tokenizer, &options.data, &sequence_options)
        .with_context(|| format!("cannot use --data {}", options.data.display()))?;
    sequences.truncate(options.limit());
    measure(options, named, created, sequences, (&tokenizer, columns))
}

/// A text by passages.
///
/// # Errors
/// If the tokenizer or the model does not fit it.
pub fn of_passages(
    options: &Options,
    named: &Named,
    created: &Created<Decoder>,
    text: &str,
    columns: &Columns,
) -> Result<Measured> {
    let tokenizer = named.source.tokenizer()?;
    let ids = tokenizer
        .encode_plain(text)
        .with_context(|| format!("cannot use --data {}", options.data.display()))?
        .ids;
    let passages = ids.chunks(longest(options, created));
    let passages = passages.map(|ids| Sequence::new(ids.to_vec()));
    let passages = passages.filter(|passage| passage.learned() > 0);
    let passages = passages.take(options.limit()).collect();
    measure(options, named, created, passages, (&tokenizer, columns))
}

fn longest(options: &Options, created: &Created<Decoder>) -> usize {
    let asked = options.max_length.unwrap_or(LONGEST);
    asked.min(created.config.max_position_embeddings).max(1)
}

fn measure(
    options: &Options,
    named: &Named,
    created: &Created<Decoder>,
    mut sequences: Vec<Sequence>,
    (tokenizer, columns): (&Tokenizer, &Columns),
) -> Result<Measured> {
    if sequences.is_empty() {
        bail!(
            "--data {} has no token to measure within {} tokens: say a longer --max-length",
            options.data.display(),
            longest(options, created)
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
        on: format!("{} texts, {tokens} tokens", sequences.len()),
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
