//! Text that a language model writes.

use super::stops::Stops;
use super::tokenizer::Tokenizer;
use crate::models::generate::{self as tokens, Decode, Generate, Session, Settings};
use crate::{Error, Result};

/// What stands for bytes that are no whole character.
const BROKEN: char = '\u{fffd}';

/// Continues prompts, as [`models::generate`](tokens::generate) does, in text: see [`TextStream`].
///
/// A sequence ends with a stop token, which has no text, or before a
/// [stop string](Settings::stop_strings), which may lie in several tokens.
///
/// ```no_run
/// # let (model, tokenizer): (lora::models::decoder::Decoder, lora::text::Tokenizer) = unimplemented!();
/// use lora::models::generate::Settings;
/// use lora::text::generate;
///
/// let prompts = tokenizer.encode_batch(["Once upon a time", "The end of"])?;
/// let settings = Settings::new().max_new_tokens(50).stop_strings(["."]);
/// let texts = generate(&model, &tokenizer, &prompts, &settings)?.into_texts()?;
/// # Ok::<(), lora::Error>(())
/// ```
///
/// # Errors
/// Those of [`models::generate`](tokens::generate).
pub fn generate<'a, M: Decode>(
    model: &'a M,
    tokenizer: &'a Tokenizer,
    prompts: &[impl AsRef<[u32]>],
    settings: &Settings,
) -> Result<TextStream<'a, M>> {
    let generate = tokens::generate(model, prompts, &plain(settings))?;
    stream(generate, tokenizer, prompts, settings)
}

/// Continues one prompt in text, as [`models::generate_after`](tokens::generate_after) does: a
/// conversation goes on without being read anew. [`TextStream::into_session`] has the session of the
/// next time.
///
/// # Errors
/// Those of [`generate`].
pub fn generate_after<'a, M: Decode>(
    model: &'a M,
    session: Session<M>,
    tokenizer: &'a Tokenizer,
    prompt: &[u32],
    settings: &Settings,
) -> Result<TextStream<'a, M>> {
    let generate = tokens::generate_after(model, session, prompt, &plain(settings))?;
    stream(generate, tokenizer, &[prompt], settings)
}

/// The settings of the tokens alone.
fn plain(settings: &Settings) -> Settings {
    settings.clone().stop_strings::<String>([])
}

fn stream<'a, M: Decode>(
    generate: Generate<'a, M>,
    tokenizer: &'a Tokenizer,
    prompts: &[impl AsRef<[u32]>],
    settings: &Settings,
) -> Result<TextStream<'a, M>> {
    if settings.stop_strings.iter().any(String::is_empty) {
        return Err(Error::Generation(vec!["a stop string is empty".into()]));
    }
    let row = |prompt: &[u32]| Row {
        context: prompt.to_vec(),
        new: Vec::new(),
        stops: Stops::new(&settings.stop_strings),
        ended: false,
    };
    Ok(TextStream {
        generate,
        tokenizer,
        rows: prompts.iter().map(|prompt| row(prompt.as_ref())).collect(),
        stop_tokens: settings.stop_tokens.clone(),
    })
}

/// The text that a model adds to prompts, as it is made.
///
/// Each item has a text for each prompt: what has become sure since the last, which may be nothing. Whole
/// characters come, never bytes of one, and nothing of a stop string. The texts of a prompt put together
/// are those of [`into_texts`](Self::into_texts). After an error the stream ends.
pub struct TextStream<'a, M: Decode> {
    generate: Generate<'a, M>,
    tokenizer: &'a Tokenizer,
    rows: Vec<Row>,
    stop_tokens: Vec<u32>,
}

/// A sequence.
struct Row {
    /// Tokens whose text is out: they decide how the next one begins, with a space or without. The first
    /// begins a character.
    context: Vec<u32>,
    /// Tokens whose text is not.
    new: Vec<u32>,
    stops: Stops,
    ended: bool,
}

impl Row {
    /// The text of a further token, as far as its characters are whole; all that is left with `None`.
    fn push(&mut self, token: Option<u32>, tokenizer: &Tokenizer) -> Result<String> {
        self.new.extend(token);
        if self.new.is_empty() {
            return Ok(String::new());
        }
        let before = tokenizer.decode(&self.context)?;
        self.context.extend(&self.new);
        let all = tokenizer.decode(&self.context)?;
        self.context.truncate(self.context.len() - self.new.len());
        // Decoders that join words may change a text's end: what is out stays.
        let same = before.chars().zip(all.chars()).take_while(|(a, b)| a == b);
        let same: usize = same.map(|(char, _)| char.len_utf8()).sum();
        let text = &all[same..];
        if token.is_some() && text.ends_with(BROKEN) {
            return Ok(String::new());
        }
        let text = text.to_string();
        match text.is_empty() {
            true => self.context.append(&mut self.new),
            false => self.context = std::mem::take(&mut self.new),
        }
        Ok(text)
    }
}

impl<M: Decode> TextStream<'_, M> {
    /// All texts: what is added to each prompt, without the prompt.
    ///
    /// # Errors
    /// Those of the model and of the tokenizer.
    pub fn into_texts(self) -> Result<Vec<String>> {
        let mut texts = vec![String::new(); self.rows.len()];
        for pieces in self {
            for (text, piece) in texts.iter_mut().zip(pieces?) {
                text.push_str(&piece);
            }
        }
        Ok(texts)
    }

    /// What the model has seen, for [`generate_after`]: nothing if there were several prompts.
    pub fn into_session(self) -> Session<M> {
        self.generate.into_session()
    }

    fn pieces(&mut self, step: Vec<Option<u32>>) -> Result<Vec<String>> {
        let mut pieces = Vec::new();
        for (index, token) in step.into_iter().enumerate() {
            let row = &mut self.rows[index];
            let token = token.filter(|_| !row.ended);
            let mut piece = String::new();
            if let Some(token) = token.filter(|token| !self.stop_tokens.contains(token)) {
                let text = row.push(Some(token), self.tokenizer)?;
                (piece, row.ended) = row.stops.push(&text);
                if row.ended {
                    self.generate.end_row(index);
                }
            }
            if !row.ended && self.generate.has_ended(index) {
                let text = row.push(None, self.tokenizer)?;
                let (sure, stopped) = row.stops.push(&text);
                piece.push_str(&sure);
                if !stopped {
                    piece.push_str(&row.stops.rest());
                }
                row.ended = true;
            }
            pieces.push(piece);
        }
        Ok(pieces)
    }
}

impl<M: Decode> Iterator for TextStream<'_, M> {
    type Item = Result<Vec<String>>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.generate.next()?;
        let pieces = step.and_then(|step| self.pieces(step));
        if pieces.is_err() {
            (0..self.rows.len()).for_each(|index| self.generate.end_row(index));
        }
        Some(pieces)
    }
}
