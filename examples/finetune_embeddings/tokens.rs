//! Texts as tokens, and what a model makes of them.

use crate::interrupt;
use crate::text::Source;
use anyhow::Result;
use candle_core::{Device, Tensor};
use lora::Lora;
use lora::data::Pad;
use lora::models::encoder::{Encoder, EncoderConfig, Inputs};
use lora::text::{Encoding, Tokenizer};
use std::cmp::Reverse;

/// Texts that are embedded at once where nothing is learned.
const AT_ONCE: usize = 64;

/// Makes tokens of texts, and batches of tokens.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    pub(super) tokenizer: Tokenizer,
    pad: Pad,
    /// Tokens of a text at most.
    pub(super) most: usize,
}

impl Reader {
    /// With the model's tokenizer. Texts are cut to so many tokens, and to what the model takes.
    pub(super) fn new(source: &Source, config: &EncoderConfig, most: usize) -> Result<Self> {
        let tokenizer = source.tokenizer()?;
        let most = most.min(config.max_position_embeddings);
        let most = most.min(tokenizer.longest().unwrap_or(most));
        let tokenizer = tokenizer.truncate_to(most)?;
        Ok(Self {
            pad: Pad::new(tokenizer.pad()).side(tokenizer.padding_side()),
            tokenizer,
            most,
        })
    }

    pub(super) fn read<'a>(
        &self,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Encoding>> {
        Ok(self.tokenizer.encode_batch(texts)?)
    }

    /// How many of the texts fill all of their room: those that were cut, and those that just fit.
    pub(super) fn full<'a>(&self, texts: impl IntoIterator<Item = &'a Encoding>) -> usize {
        let texts = texts.into_iter();
        texts.filter(|text| text.ids.len() == self.most).count()
    }

    /// The embeddings of all texts, (texts, width).
    pub(super) fn embed(&self, model: &Lora<Encoder>, texts: &[Encoding]) -> Result<Tensor> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&index| Reverse(texts[index].ids.len()));
        let mut parts = Vec::new();
        for indices in order.chunks(AT_ONCE) {
            interrupt::check()?;
            let batch: Vec<&Encoding> = indices.iter().map(|&index| &texts[index]).collect();
            let tokens = self.pad.tokens(&batch, &Device::Cpu)?;
            let inputs = Inputs::new(&tokens.ids).mask(&tokens.mask);
            parts.push(model.embed(&inputs, false)?.detach());
        }
        let mut places = vec![0u32; texts.len()];
        for (place, &index) in (0..).zip(&order) {
            places[index] = place;
        }
        let places = Tensor::new(places, &Device::Cpu)?;
        Ok(Tensor::cat(&parts, 0)?.index_select(&places, 0)?)
    }
}
