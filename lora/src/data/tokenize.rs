//! Records as tokens with labels.

use super::message::{Chat, Message};
use super::records::{MOST_PROBLEMS, Record, read_numbered};
use super::sequence::{NO_LABEL, Sequence};
use crate::error::warn;
use crate::{Error, Result};
use rayon::prelude::*;
use serde_json::Value;
use std::ops::Range;
use std::path::Path;

/// What makes tokens of texts and texts of conversations: `text::Tokenizer`, of the feature `text`, or one
/// of your own.
pub trait Tokenize {
    /// The tokens of a text. With `special`, those are added that the tokenizer has around a text.
    ///
    /// # Errors
    /// If the text has no tokens.
    fn tokenize(&self, text: &str, special: bool) -> Result<Tokenized>;

    /// A conversation as the model's chat template writes it. With `prompt`, the start of an answer
    /// follows.
    ///
    /// # Errors
    /// If there is no template, or the template refuses the conversation.
    fn render_chat(&self, messages: &[Message], tools: &[Value], prompt: bool) -> Result<Rendered>;

    /// The token that ends a text.
    fn end(&self) -> Option<u32>;
}

/// Tokens, and the bytes of the text that each is made of: an empty range for a token that was added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokenized {
    /// The tokens.
    pub ids: Vec<u32>,
    /// For each token its bytes of the text.
    pub bytes: Vec<Range<usize>>,
}

/// A conversation as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The bytes that the template marks as generated (`{% generation %}`); most templates mark none.
    pub generated: Vec<Range<usize>>,
}

/// How records become tokens.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SequenceOptions {
    /// Longer sequences are cut behind this many tokens.
    pub max_length: usize,
    /// Whether prompts are learned too.
    pub learn_prompts: bool,
}

impl SequenceOptions {
    /// Sequences of at most this many tokens, whose prompts are not learned.
    pub fn new(max_length: usize) -> Self {
        Self {
            max_length,
            learn_prompts: false,
        }
    }

    /// Sets [`learn_prompts`](Self::learn_prompts).
    pub fn learn_prompts(mut self, learn: bool) -> Self {
        self.learn_prompts = learn;
        self
    }
}

/// The tokens of records, with labels as TRL gives them:
///
/// - a text is learned whole, and ends with the tokenizer's end;
/// - a completion is learned, with the end; prompt and completion are one text, so put the space between
///   them into one of the two;
/// - of a conversation the assistant's answers are learned, up to what the template writes behind each. A
///   template with `{% generation %}` says itself where answers are. Of any other, an answer is what the
///   text has behind the conversation so far with the start of an answer.
///
/// A record without a token to learn is left out with a warning.
///
/// # Errors
/// [`Error::Data`] names each record whose answers cannot be told apart: then the template writes a message
/// otherwise once others follow. Errors of the tokenizer name the record, too.
pub fn sequences(
    tokenizer: &(impl Tokenize + Sync),
    records: &[Record],
    options: &SequenceOptions,
) -> Result<Vec<Sequence>> {
    let named = records.iter().enumerate();
    let named = named.map(|(index, record)| (format!("record {index}"), record));
    named_sequences(tokenizer, &named.collect::<Vec<_>>(), options).map_err(Error::Data)
}

/// The [`sequences`] of a JSONL file's records.
///
/// # Errors
/// Those of [`read_jsonl`](super::read_jsonl), and [`Error::File`] names each line whose record cannot be
/// used.
pub fn read_sequences(
    tokenizer: &(impl Tokenize + Sync),
    path: impl AsRef<Path>,
    options: &SequenceOptions,
) -> Result<Vec<Sequence>> {
    let path = path.as_ref();
    let records: Vec<(usize, Record)> = read_numbered(path)?;
    let named = records.iter();
    let named = named.map(|(number, record)| (format!("line {number}"), record));
    named_sequences(tokenizer, &named.collect::<Vec<_>>(), options).map_err(|problems| {
        Error::File {
            path: path.into(),
            problems,
        }
    })
}

/// The sequences of records, each with what a problem calls it.
fn named_sequences(
    tokenizer: &(impl Tokenize + Sync),
    records: &[(String, &Record)],
    options: &SequenceOptions,
) -> Result<Vec<Sequence>, Vec<String>> {
    let made: Vec<Result<Sequence>> = records
        .par_iter()
        .map(|(_, record)| sequence(tokenizer, record, options.learn_prompts))
        .collect();
    let (mut sequences, mut problems, mut cut) = (Vec::new(), Vec::new(), 0);
    for (made, (name, _)) in made.into_iter().zip(records) {
        match made {
            Ok(mut sequence) => {
                cut += usize::from(sequence.len() > options.max_length);
                sequence.truncate(options.max_length);
                sequences.push(sequence);
            }
            Err(error) => problems.push(format!("{name}: {}", reason(error))),
        }
    }
    if problems.len() > MOST_PROBLEMS {
        problems.truncate(MOST_PROBLEMS);
        problems.push("there are more".into());
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let all = sequences.len();
    sequences.retain(|sequence| sequence.learned() > 0);
    let most = options.max_length;
    if cut > 0 {
        warn(&format!(
            "{cut} of {all} records were cut behind {most} tokens"
        ));
    }
    if sequences.len() < all {
        let left_out = all - sequences.len();
        warn(&format!(
            "{left_out} of {all} records have no token to learn within {most} tokens: they are left out"
        ));
    }
    Ok(sequences)
}

/// The error without the words that the list of all begins with.
fn reason(error: Error) -> String {
    match error {
        Error::Data(problems) | Error::Text(problems) => problems.join("; "),
        error => error.to_string(),
    }
}

fn sequence(tokenizer: &impl Tokenize, record: &Record, learn_prompts: bool) -> Result<Sequence> {
    match record {
        Record::Text(text) => {
            let tokens = tokenizer.tokenize(text, true)?;
            Ok(ended(Sequence::new(tokens.ids), tokenizer))
        }
        Record::Completion { prompt, completion } => {
            let text = format!("{prompt}{completion}");
            let tokens = tokenizer.tokenize(&text, true)?;
            let completion = prompt.len()..text.len();
            let sequence = match learn_prompts {
                true => Sequence::new(tokens.ids),
                false => learn(tokens, &[completion]),
            };
            Ok(ended(sequence, tokenizer))
        }
        Record::Chat(chat) => {
            let Rendered { text, generated } =
                tokenizer.render_chat(&chat.messages, &chat.tools, false)?;
            let tokens = tokenizer.tokenize(&text, false)?;
            if learn_prompts {
                return Ok(Sequence::new(tokens.ids));
            }
            let answers = match generated.is_empty() || chat.prompt > 0 {
                true => answers(tokenizer, chat, &text)?,
                false => generated,
            };
            Ok(learn(tokens, &answers))
        }
    }
}

/// Appends the end, unless it is there.
fn ended(mut sequence: Sequence, tokenizer: &impl Tokenize) -> Sequence {
    let end = tokenizer.end();
    if let Some(end) = end.filter(|end| sequence.ids.last() != Some(end)) {
        sequence.ids.push(end);
        sequence.numbers.push(1);
    }
    // The end is learned, whoever wrote it.
    if let Some(end) = end {
        sequence.labels.truncate(sequence.ids.len() - 1);
        sequence.labels.push(end.into());
    }
    sequence
}

/// Tokens of which those are learned that reach into one of these places.
fn learn(tokens: Tokenized, places: &[Range<usize>]) -> Sequence {
    let mut sequence = Sequence::new(tokens.ids);
    for (label, bytes) in sequence.labels.iter_mut().zip(tokens.bytes) {
        let overlaps = |place: &Range<usize>| bytes.start < place.end && bytes.end > place.start;
        if bytes.is_empty() || !places.iter().any(overlaps) {
            *label = NO_LABEL;
        }
    }
    sequence
}

/// Where the text of a conversation has answers of the assistant.
fn answers(tokenizer: &impl Tokenize, chat: &Chat, text: &str) -> Result<Vec<Range<usize>>> {
    let mut places = Vec::new();
    for (index, message) in chat.messages.iter().enumerate().skip(chat.prompt) {
        if message.role() != "assistant" {
            continue;
        }
        let written = |count: usize, prompt: bool| {
            tokenizer.render_chat(&chat.messages[..count], &chat.tools, prompt)
        };
        let start = match index {
            0 => String::new(),
            _ => written(index, true)?.text,
        };
        let end = written(index + 1, false)?.text;
        if !text.starts_with(&start) || !text.starts_with(&end) || end.len() < start.len() {
            let problem = format!(
                "the chat template writes message {index} otherwise once others follow, so that its answer \
                 cannot be found in the text: use a template with `{{% generation %}}` around answers, or \
                 learn the last answer alone (`prompt` and `completion` as lists of messages)"
            );
            return Err(Error::Data(vec![problem]));
        }
        places.push(start.len()..end.len());
    }
    Ok(places)
}
