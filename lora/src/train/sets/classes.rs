//! Texts with their classes, for an encoder with a head.

use super::{Dataset, longest_first};
use crate::data::{Classes, Labelled, Pad};
use crate::metrics::{F1, accuracy};
use crate::models::encoder::{Inputs, LoraEncoder};
use crate::ops::CrossEntropy;
use crate::text::{Encoding, Input, Tokenizer};
use crate::train::{Best, Loss, Metrics};
use crate::{Error, Result};
use candle_core::{D, DType, Device, Tensor};

/// Texts with their classes, for an [`Encoder`](crate::models::encoder::Encoder) that tells texts apart. The
/// metrics are `loss`, `accuracy` and `f1`, the mean over the classes.
#[derive(Clone, Debug)]
pub struct TextClasses {
    encodings: Vec<Encoding>,
    labels: Vec<u32>,
    pad: Pad,
    has_types: bool,
}

/// Some of [`TextClasses`], padded to the longest text.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TextBatch {
    /// The tokens, (batch, time).
    pub ids: Tensor,
    /// 1 for a token and 0 for padding, (batch, time).
    pub mask: Tensor,
    /// Which of two texts a token is of, (batch, time), if the model is told.
    pub types: Option<Tensor>,
    /// The classes, (batch), i64.
    pub labels: Tensor,
}

impl TextClasses {
    /// The texts as tokens. The tokenizer decides where long ones are cut
    /// ([`Tokenizer::truncate_to`]). With `has_types` the model is told which of two texts a token is of.
    ///
    /// # Errors
    /// If a text has no tokens, or its label is none of the classes.
    pub fn new(
        tokenizer: &Tokenizer,
        texts: &[Labelled],
        classes: &Classes,
        has_types: bool,
    ) -> Result<Self> {
        let inputs = texts.iter().map(|text| Input {
            text: &text.text,
            pair: text.text_pair.as_deref(),
        });
        let labels = texts.iter().map(|text| classes.numbered(&text.label));
        Ok(Self {
            labels: labels.collect::<Result<_>>()?,
            encodings: tokenizer.encode_batch(inputs)?,
            pad: Pad::new(tokenizer.pad()).side(tokenizer.padding_side()),
            has_types: has_types && texts.iter().any(|text| text.text_pair.is_some()),
        })
    }

    /// The logits of all texts, (texts, classes), f32.
    ///
    /// # Errors
    /// If the model does not fit the texts.
    pub fn logits(&self, model: &LoraEncoder, at_once: usize) -> Result<Tensor> {
        let mut rows = vec![Vec::new(); self.encodings.len()];
        for numbers in longest_first(&self.lengths()).chunks(at_once.max(1)) {
            let logits = self.batch(numbers)?.logits(model, false)?;
            let logits: Vec<Vec<f32>> = logits.to_dtype(DType::F32)?.to_vec2()?;
            for (&number, row) in numbers.iter().zip(logits) {
                rows[number] = row;
            }
        }
        Ok(Tensor::new(rows, &Device::Cpu)?)
    }

    /// The number of each text's class.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }
}

impl TextBatch {
    /// A model's logits, (batch, classes). With `train` numbers are dropped as the model's configuration says.
    ///
    /// # Errors
    /// If the model does not fit the texts.
    pub fn logits(&self, model: &LoraEncoder, train: bool) -> Result<Tensor> {
        let mut inputs = Inputs::new(&self.ids).mask(&self.mask);
        if let Some(types) = &self.types {
            inputs = inputs.types(types);
        }
        Ok(model.forward(&inputs, train)?)
    }
}

impl Dataset for TextClasses {
    type Model = LoraEncoder;
    type Batch = TextBatch;

    fn lengths(&self) -> Vec<usize> {
        let encodings = self.encodings.iter();
        encodings.map(|encoding| encoding.ids.len()).collect()
    }

    fn batch(&self, numbers: &[usize]) -> Result<TextBatch> {
        let device = &Device::Cpu;
        let rows = numbers.iter().map(|&number| &self.encodings[number]);
        let rows: Vec<&Encoding> = rows.collect();
        let tokens = self.pad.tokens(&rows, device)?;
        let types: Vec<&[u32]> = rows.iter().map(|row| row.types.as_slice()).collect();
        let types = self.has_types.then(|| self.pad.rows(&types, 0, device));
        let labels = numbers.iter().map(|&number| i64::from(self.labels[number]));
        Ok(TextBatch {
            ids: tokens.ids,
            mask: tokens.mask,
            types: types.transpose()?,
            labels: Tensor::from_iter(labels, device)?,
        })
    }

    fn loss(&self, model: &LoraEncoder, batch: &TextBatch) -> Result<Loss> {
        let logits = batch.logits(model, true)?;
        let loss = CrossEntropy::new().of_logits(&logits, &batch.labels)?;
        Ok(Loss::over_examples(loss, batch.labels.elem_count()))
    }

    fn evaluate(&self, model: &LoraEncoder, at_once: usize) -> Result<Metrics> {
        if self.labels.is_empty() {
            let problem = "there is no text to measure with";
            return Err(Error::Data(vec![problem.into()]));
        }
        let logits = self.logits(model, at_once)?;
        let labels = self.labels.iter().map(|&label| i64::from(label));
        let labels = Tensor::from_iter(labels, &Device::Cpu)?;
        let loss = CrossEntropy::new().of_logits(&logits, &labels)?;
        let predictions: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
        Ok(Metrics::from([
            ("loss", f64::from(loss.to_scalar::<f32>()?)),
            ("accuracy", accuracy(&predictions, &self.labels)?),
            ("f1", F1::macro_mean(&predictions, &self.labels)?.f1),
        ]))
    }

    fn best(&self) -> Best {
        Best::Highest("accuracy".into())
    }
}
