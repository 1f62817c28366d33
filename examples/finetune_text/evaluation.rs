//! What a model makes of texts.

use crate::interrupt;
use anyhow::{Context, Result};
use candle_core::{D, Tensor};
use lora::models::encoder::LoraEncoder;
use lora::train::TextClasses;

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

impl Evaluation {
    /// Of all texts, so many at once.
    ///
    /// # Errors
    /// If the model does not fit the texts, or somebody stops the program.
    pub fn of(model: &LoraEncoder, texts: &TextClasses, at_once: usize) -> Result<Self> {
        interrupt::check()?;
        let logits = texts.logits(model, at_once);
        let logits = logits.context("the model does not fit the texts")?;
        Ok(Self {
            probabilities: candle_nn::ops::softmax(&logits, D::Minus1)?.to_vec2()?,
            predictions: logits.argmax(D::Minus1)?.to_vec1()?,
            logits,
        })
    }
}
