//! A sequence that goes on after a generation, as a conversation does.

use super::{Decode, Generate, Settings, start};
use crate::Result;
use std::fmt;

/// What a model has seen of a sequence: the tokens, and the model's cache of them.
///
/// ```
/// # use lora::models::decoder::{Decoder, DecoderConfig};
/// # use lora::models::{self, Options, Weights};
/// use lora::models::generate::{Session, Settings, generate, generate_after};
///
/// # let config: DecoderConfig = serde_json::from_str(
/// #     r#"{"model_type": "llama", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64,
/// #         "num_attention_heads": 4, "num_hidden_layers": 2}"#,
/// # ).unwrap();
/// # let model = models::build::<Decoder>(&config, Weights::Random(0), &Options::new())?.model;
/// let settings = Settings::new().max_new_tokens(4);
/// let (mut tokens, mut session) = (vec![7u32, 3, 9], Session::new());
/// for question in [[5, 8], [2, 2]] {
///     tokens.extend(question);
///     // Only the question is computed, and the last token of the answer before.
///     let mut answer = generate_after(&model, session, &tokens, &settings)?;
///     let alone = generate(&model, &[&tokens], &settings)?.into_tokens()?;
///     for step in answer.by_ref() {
///         tokens.extend(step?.into_iter().flatten());
///     }
///     assert!(tokens.ends_with(&alone[0]));
///     session = answer.into_session();
/// }
/// assert_eq!(session.tokens().len() + 1, tokens.len());
/// # Ok::<(), lora::Error>(())
/// ```
pub struct Session<M: Decode> {
    seen: Option<(M::Cache, Vec<u32>)>,
}

impl<M: Decode> Session<M> {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { seen: None }
    }

    /// The tokens that the model has seen.
    pub fn tokens(&self) -> &[u32] {
        self.seen.as_ref().map_or(&[], |(_, tokens)| tokens)
    }

    pub(super) fn of(cache: M::Cache, tokens: Vec<u32>) -> Self {
        Self {
            seen: Some((cache, tokens)),
        }
    }

    pub(super) fn split(self) -> Option<(M::Cache, Vec<u32>)> {
        self.seen
    }
}

impl<M: Decode> Default for Session<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Decode> fmt::Debug for Session<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("tokens", &self.tokens().len())
            .finish_non_exhaustive()
    }
}

/// Continues one prompt, as [`generate`](super::generate) does. Where the prompt begins with what the
/// session's model has seen, only the rest is computed; else the session is of no use, and nothing is
/// lost but time.
///
/// The session must be one of this model with these adapters: others have other keys and values.
///
/// # Errors
/// Those of [`generate`](super::generate).
pub fn generate_after<'a, M: Decode>(
    model: &'a M,
    session: Session<M>,
    prompt: &[u32],
    settings: &Settings,
) -> Result<Generate<'a, M>> {
    start(model, session, &[prompt], settings)
}
