//! Tokens of texts with their classes, as batches.

use super::data::Item;
use crate::interrupt;
use anyhow::{Context, Result};
use candle_core::{D, DType, Device, Tensor};
use lora::data::Pad;
use lora::models::encoder::{Inputs, LoraEncoder};
use lora::text::{Encoding, Input, Tokenizer};
use std::cmp::Reverse;

/// Texts as tokens.
#[derive(Clone, Debug)]
pub struct Set {
    encodings: Vec<Encoding>,
    labels: Vec<u32>,
    pad: Pad,
    has_types: bool,
}

/// A batch, padded to its longest text.
#[derive(Clone, Debug)]
pub struct Batch {
    ids: Tensor,
    mask: Tensor,
    /// Which of two texts a token is of.
    types: Option<Tensor>,
    /// (batch), i64.
    pub labels: Tensor,
}

/// What a model makes of texts.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// (texts, classes).
    pub logits: Tensor,
    /// (texts, classes), by text.
    pub probabilities: Vec<Vec<f32>>,
    /// The likeliest class of each text.
    pub predictions: Vec<u32>,
}

impl Set {
    /// Encodes texts. With `has_types` the model is told which of two texts a token is of.
    ///
    /// # Errors
    /// If a text has no tokens.
    pub fn new(items: &[Item], tokenizer: &Tokenizer, has_types: bool) -> Result<Self> {
        let inputs = items.iter().map(|item| Input {
            text: &item.text,
            pair: item.pair.as_deref(),
        });
        Ok(Self {
            encodings: tokenizer.encode_batch(inputs)?,
            labels: items.iter().map(|item| item.class).collect(),
            pad: Pad::new(tokenizer.pad()).side(tokenizer.padding_side()),
            has_types: has_types && items.iter().any(|item| item.pair.is_some()),
        })
    }

    /// Tokens of each text.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        self.encodings.iter().map(|encoding| encoding.ids.len())
    }

    /// Tokens of these texts.
    pub fn tokens(&self, indices: &[usize]) -> usize {
        let lengths = indices.iter().map(|&index| self.encodings[index].ids.len());
        lengths.sum()
    }

    /// The classes of all texts.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// These texts.
    ///
    /// # Errors
    /// If the tensors cannot be made.
    pub fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let device = &Device::Cpu;
        let rows: Vec<&Encoding> = indices
            .iter()
            .map(|&index| &self.encodings[index])
            .collect();
        let tokens = self.pad.tokens(&rows, device)?;
        let types: Vec<&[u32]> = rows.iter().map(|row| row.types.as_slice()).collect();
        let types = self.has_types.then(|| self.pad.rows(&types, 0, device));
        let labels: Vec<i64> = indices
            .iter()
            .map(|&index| self.labels[index].into())
            .collect();
        Ok(Batch {
            ids: tokens.ids,
            mask: tokens.mask,
            types: types.transpose()?,
            labels: Tensor::new(labels, device)?,
        })
    }

    /// What a model makes of all texts, those of about the same length together.
    ///
    /// # Errors
    /// If the model does not fit the texts, or somebody stops the program.
    pub fn evaluate(&self, model: &LoraEncoder, batch: usize) -> Result<Evaluation> {
        let lengths: Vec<usize> = self.lengths().collect();
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&index| Reverse(lengths[index]));
        let mut rows = vec![Vec::new(); lengths.len()];
        for indices in order.chunks(batch) {
            interrupt::check()?;
            let logits = self.batch(indices)?.logits(model, false);
            let logits = logits.context("the model does not fit the texts")?;
            let logits: Vec<Vec<f32>> = logits.to_dtype(DType::F32)?.to_vec2()?;
            for (&index, row) in indices.iter().zip(logits) {
                rows[index] = row;
            }
        }
        let logits = Tensor::new(rows, &Device::Cpu)?;
        let predictions = logits.argmax(D::Minus1)?.to_vec1()?;
        Ok(Evaluation {
            probabilities: candle_nn::ops::softmax(&logits, D::Minus1)?.to_vec2()?,
            predictions,
            logits,
        })
    }
}

impl Batch {
    /// A model's logits, (batch, classes).
    ///
    /// # Errors
    /// If the model does not fit the texts.
    pub fn logits(&self, model: &LoraEncoder, train: bool) -> candle_core::Result<Tensor> {
        let mut inputs = Inputs::new(&self.ids).mask(&self.mask);
        if let Some(types) = &self.types {
            inputs = inputs.types(types);
        }
        model.forward(&inputs, train)
    }
}
