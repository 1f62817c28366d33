//! What a language model learns.

use super::Dataset;
use crate::data::{Batch, Pad, Sequence, pack};
use crate::metrics::Perplexity;
use crate::models::decoder::LoraDecoder;
use crate::train::{Best, Loss, Metrics};
use crate::{Error, Result};
use candle_core::Device;

/// Sequences of tokens for a [`Decoder`](crate::models::decoder::Decoder), see
/// [`data::sequences`](crate::data::sequences). The metrics are `loss`, the mean of a token, and
/// `perplexity`.
///
/// ```
/// use lora::data::{Pad, Sequence};
/// use lora::models::decoder::{Decoder, DecoderConfig};
/// use lora::models::{self, Options, Weights};
/// use lora::train::{Dataset, Language};
/// use lora::{LoraConfig, LoraModel};
///
/// let config: DecoderConfig = serde_json::from_str(
///     r#"{"model_type": "llama", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64,
///         "num_attention_heads": 4, "num_hidden_layers": 2}"#,
/// ).unwrap();
/// let base = models::build::<Decoder>(&config, Weights::Random(0), &Options::new())?.model;
/// let data = Language::new(vec![Sequence::new(vec![7, 3, 9]), Sequence::new(vec![5, 2])], Pad::new(0));
/// let metrics = data.evaluate(&base.to_lora(&LoraConfig::new(2))?, 8)?;
/// let (loss, perplexity) = (metrics.get("loss").unwrap(), metrics.get("perplexity").unwrap());
/// assert!((loss.exp() - perplexity).abs() < 1e-9);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Language {
    rows: Vec<Sequence>,
    pad: Pad,
    packed: bool,
}

impl Language {
    /// A row for each sequence.
    pub fn new(rows: Vec<Sequence>, pad: Pad) -> Self {
        Self {
            rows,
            pad,
            packed: false,
        }
    }

    /// Several sequences in a row of so many tokens at most, see [`pack`].
    ///
    /// # Errors
    /// [`Error::Data`] names a sequence that is longer.
    pub fn packed(sequences: &[Sequence], length: usize, pad: Pad) -> Result<Self> {
        Ok(Self {
            rows: pack(sequences, length)?,
            pad,
            packed: true,
        })
    }

    /// The rows.
    pub fn rows(&self) -> &[Sequence] {
        &self.rows
    }
}

impl Dataset for Language {
    type Model = LoraDecoder;
    type Batch = Batch;

    fn lengths(&self) -> Vec<usize> {
        self.rows.iter().map(Sequence::len).collect()
    }

    fn batch(&self, numbers: &[usize]) -> Result<Batch> {
        let rows: Vec<&Sequence> = numbers.iter().map(|&number| &self.rows[number]).collect();
        self.pad.sequences(&rows, &Device::Cpu)
    }

    fn teaches(&self, numbers: &[usize]) -> bool {
        numbers
            .iter()
            .any(|&number| self.rows[number].learned() > 0)
    }

    fn loss(&self, model: &LoraDecoder, batch: &Batch) -> Result<Loss> {
        let mask = match self.packed {
            true => &batch.numbers,
            false => &batch.mask,
        };
        let mean = model.loss(&batch.ids, Some(mask), &batch.labels)?;
        Ok(Loss::over_tokens(mean, batch.learned))
    }

    fn evaluate(&self, model: &LoraDecoder, at_once: usize) -> Result<Metrics> {
        let mut perplexity = Perplexity::new();
        let numbers: Vec<usize> = (0..self.rows.len()).collect();
        for numbers in numbers.chunks(at_once.max(1)) {
            if !self.teaches(numbers) {
                continue;
            }
            let loss = self.loss(model, &self.batch(numbers)?)?;
            perplexity.add(loss.value()?, loss.count);
        }
        if perplexity.tokens() == 0 {
            let problem = "there is no token to predict in the data to measure with";
            return Err(Error::Data(vec![problem.into()]));
        }
        Ok(Metrics::from([
            ("loss", perplexity.loss()),
            ("perplexity", perplexity.value()),
        ]))
    }

    fn best(&self) -> Best {
        Best::Lowest("loss".into())
    }
}
