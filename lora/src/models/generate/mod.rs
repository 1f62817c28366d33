//! Generating text, token by token.
//!
//! ```
//! use lora::models::decoder::{Decoder, DecoderConfig};
//! use lora::models::generate::{Settings, generate};
//! use lora::models::{self, Options, Weights};
//!
//! let config: DecoderConfig = serde_json::from_str(
//!     r#"{"model_type": "llama", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64,
//!         "num_attention_heads": 4, "num_hidden_layers": 2}"#,
//! ).unwrap();
//! let model = models::build::<Decoder>(&config, Weights::Random(0), &Options::new())?.model;
//!
//! // Two prompts of different length, at once.
//! let prompts = [vec![7u32, 3, 9], vec![5]];
//! let settings = Settings::new().max_new_tokens(4).temperature(0.8).top_p(0.95).seed(1);
//! for tokens in generate(&model, &prompts, &settings)? {
//!     println!("{:?}", tokens?); // the next token of each prompt
//! }
//! let all = generate(&model, &prompts, &settings)?.into_tokens()?;
//! assert_eq!((all.len(), all[0].len()), (2, 4));
//! # Ok::<(), lora::Error>(())
//! ```

mod sampling;
mod session;
mod settings;

pub use session::{Session, generate_after};
pub use settings::Settings;

use crate::{Error, Result};
use candle_core::{D, DType, Device, Tensor};
use sampling::Sampler;

/// A language model that continues sequences. [`Decoder`](super::decoder::Decoder) is one, and so is
/// its LoRA model; implement it for a model of your own to [`generate`] with it.
pub trait Decode {
    /// What the model keeps from step to step.
    type Cache;

    /// An empty cache.
    fn new_cache(&self) -> Self::Cache;

    /// The logits of the token that follows the last position, (batch, vocabulary), for ids (batch,
    /// time), u32, that follow those in the cache. The mask, (batch, time), is 1 for a token and 0
    /// for padding. Padding stands in front of a prompt, and behind a sequence that has ended.
    ///
    /// # Errors
    /// If ids, mask or cache do not fit the model.
    fn decode(
        &self,
        ids: &Tensor,
        mask: &Tensor,
        cache: &mut Self::Cache,
    ) -> candle_core::Result<Tensor>;

    /// The device of the ids.
    fn device(&self) -> Device;
}

/// Continues the prompts, each a list of at least one token. The result yields the next token of each
/// prompt, step by step: see [`Generate`].
///
/// A LoRA model has to be in eval mode ([`eval`](crate::LoraModule::eval)): without, each step would
/// keep a graph for a backward pass, and dropout would act.
///
/// # Errors
/// [`Error::Generation`] lists settings that are out of range, and prompts without a token.
pub fn generate<'a, M: Decode>(
    model: &'a M,
    prompts: &[impl AsRef<[u32]>],
    settings: &Settings,
) -> Result<Generate<'a, M>> {
    start(model, Session::new(), prompts, settings)
}

/// Starts behind what the model has seen, if that is the start of the only prompt.
fn start<'a, M: Decode>(
    model: &'a M,
    session: Session<M>,
    prompts: &[impl AsRef<[u32]>],
    settings: &Settings,
) -> Result<Generate<'a, M>> {
    let mut problems = settings.problems();
    if !settings.stop_strings.is_empty() {
        problems.push(
            "stop strings end texts, here are tokens: call `text::generate`, of the feature `text`, or leave \
             them out with `stop_strings::<String>([])`"
                .into(),
        );
    }
    let prompts: Vec<&[u32]> = prompts.iter().map(AsRef::as_ref).collect();
    if prompts.is_empty() {
        problems.push("there is no prompt".into());
    }
    let empty = prompts
        .iter()
        .enumerate()
        .filter(|(_, prompt)| prompt.is_empty());
    problems.extend(empty.map(|(index, _)| format!("prompt {index} has no token")));
    if !problems.is_empty() {
        return Err(Error::Generation(problems));
    }
    let (cache, seen) = match (session.split(), prompts.as_slice()) {
        (Some((cache, seen)), [prompt]) if is_start(&seen, prompt) => (cache, seen),
        _ => (model.new_cache(), Vec::new()),
    };
    let row = |(index, prompt): (u64, &&[u32])| Row {
        sampler: Sampler::new(settings, settings.seed.wrapping_add(index), prompt),
        next: prompt[seen.len()..].to_vec(),
        ended: settings.max_new_tokens == 0,
    };
    Ok(Generate {
        model,
        cache,
        rows: (0..).zip(&prompts).map(row).collect(),
        left: settings.max_new_tokens,
        stop_tokens: settings.stop_tokens.clone(),
        seen: (prompts.len() == 1).then_some(seen),
    })
}

/// The tokens that a model adds to prompts, made as they are asked for.
///
/// It yields the next token of each prompt; `None` for a sequence that has ended. After an error it
/// ends.
pub struct Generate<'a, M: Decode> {
    model: &'a M,
    cache: M::Cache,
    rows: Vec<Row>,
    left: usize,
    stop_tokens: Vec<u32>,
    /// The tokens in the cache, of the only prompt; `None` with several, or after an error.
    seen: Option<Vec<u32>>,
}

/// A sequence.
struct Row {
    sampler: Sampler,
    /// The tokens that the model has not seen.
    next: Vec<u32>,
    ended: bool,
}

impl<M: Decode> Generate<'_, M> {
    /// Makes all tokens: those of each prompt, without the prompt itself.
    ///
    /// # Errors
    /// Those of the model.
    pub fn into_tokens(self) -> Result<Vec<Vec<u32>>> {
        let mut all = vec![Vec::new(); self.rows.len()];
        for step in self {
            for (tokens, token) in all.iter_mut().zip(step?) {
                tokens.extend(token);
            }
        }
        Ok(all)
    }

    /// Ends the sequence of a prompt: it gets no more tokens.
    ///
    /// # Panics
    /// If there is no prompt of this number.
    pub fn end_row(&mut self, prompt: usize) {
        self.rows[prompt].ended = true;
    }

    /// Whether the sequence of a prompt has ended.
    ///
    /// # Panics
    /// If there is no prompt of this number.
    pub fn has_ended(&self, prompt: usize) -> bool {
        self.rows[prompt].ended
    }

    fn step(&mut self) -> Result<Vec<Option<u32>>> {
        let (ids, mask) = self.inputs()?;
        // A pass that fails may leave a part of its keys in the cache.
        let seen = self.seen.take();
        let logits = self.model.decode(&ids, &mask, &mut self.cache)?;
        self.seen = seen.map(|seen| [seen, self.rows[0].next.clone()].concat());
        if logits.track_op() {
            let problem = "the model keeps a graph for a backward pass, in which dropout acts: call \
                           `eval()` of a LoRA model; `to_frozen()` makes one of a model in variables";
            return Err(Error::Generation(vec![problem.into()]));
        }
        let logits: Vec<Vec<f32>> = logits.to_dtype(DType::F32)?.to_vec2()?;
        if logits.len() != self.rows.len() {
            let problem = format!(
                "{} rows of logits for {} prompts",
                logits.len(),
                self.rows.len()
            );
            return Err(Error::Generation(vec![problem]));
        }
        let mut tokens = Vec::new();
        for (row, logits) in self.rows.iter_mut().zip(logits) {
            row.next.clear();
            if row.ended {
                tokens.push(None);
                continue;
            }
            let token = row.sampler.next(&logits)?;
            row.next.push(token);
            row.ended = self.stop_tokens.contains(&token);
            tokens.push(Some(token));
        }
        self.left -= 1;
        if self.left == 0 {
            self.end();
        }
        Ok(tokens)
    }

    /// What the model has not seen, padded in front, and the mask.
    fn inputs(&self) -> candle_core::Result<(Tensor, Tensor)> {
        let longest = self.rows.iter().map(|row| row.next.len()).max();
        let longest = longest.unwrap_or(0);
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for row in &self.rows {
            let padding = longest - row.next.len();
            ids.extend(vec![0; padding]);
            ids.extend(&row.next);
            mask.extend((0..longest).map(|place| u8::from(place >= padding)));
        }
        let (shape, device) = ((self.rows.len(), longest), self.model.device());
        Ok((
            Tensor::from_vec(ids, shape, &device)?,
            Tensor::from_vec(mask, shape, &device)?,
        ))
    }

    /// What the model has seen, for [`generate_after`]: nothing if there were several prompts.
    pub fn into_session(self) -> Session<M> {
        match self.seen {
            Some(seen) => Session::of(self.cache, seen),
            None => Session::new(),
        }
    }

    fn end(&mut self) {
        for row in &mut self.rows {
            row.ended = true;
        }
    }
}

impl<M: Decode> Iterator for Generate<'_, M> {
    type Item = Result<Vec<Option<u32>>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rows.iter().all(|row| row.ended) {
            return None;
        }
        let step = self.step();
        if step.is_err() {
            self.end();
        }
        Some(step)
    }
}

/// Whether a prompt goes on behind these tokens.
fn is_start(seen: &[u32], prompt: &[u32]) -> bool {
    seen.len() < prompt.len() && prompt.starts_with(seen)
}

/// The last position of (batch, time, n): (batch, n).
pub(super) fn last_position(xs: &Tensor) -> candle_core::Result<Tensor> {
    let time = xs.dim(D::Minus2)?;
    xs.narrow(D::Minus2, time - 1, 1)?.squeeze(D::Minus2)
}
