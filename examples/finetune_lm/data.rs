//! What a language model learns: passages of a text, or records.

use anyhow::{Context, Result, bail};
use lora::data::{Chat, Record, Sequence, SequenceOptions, Tokenize, read_jsonl, sequences, split};
use lora::text::{ChatOptions, Tokenizer};
use std::fs;
use std::path::Path;

/// Letters of the held-out text that samples go on with, at most.
const PROMPT: usize = 60;

/// Data as tokens.
#[derive(Clone, Debug)]
pub struct Data {
    /// To train on.
    pub training: Vec<Sequence>,
    /// Held out.
    pub held_out: Vec<Sequence>,
    /// What one is called: passages or records.
    pub kind: &'static str,
    /// What samples go on with.
    pub prompt: Prompt,
}

/// What a sample goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// As text.
    pub text: String,
    /// As tokens.
    pub ids: Vec<u32>,
}

impl Prompt {
    /// A text to go on with.
    ///
    /// # Errors
    /// If it has no tokens.
    pub fn new(text: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let ids = tokenizer.tokenize(text, true)?.ids;
        // A tokenizer may end each text, after which nothing follows.
        let ids: Vec<u32> = match (ids.split_last(), tokenizer.end()) {
            (Some((last, rest)), Some(end)) if *last == end => rest.to_vec(),
            _ => ids,
        };
        if ids.is_empty() {
            bail!("the prompt {text:?} has no tokens: give one by --prompt");
        }
        Ok(Self {
            text: text.into(),
            ids,
        })
    }
}

/// Reads a JSONL file of records, or any other file as a text.
///
/// # Errors
/// Says what is missing, damaged or too short.
pub fn read(
    path: &Path,
    tokenizer: &Tokenizer,
    length: usize,
    held_out: f64,
    seed: u64,
) -> Result<Data> {
    let end = path.extension().and_then(|end| end.to_str());
    match end.is_some_and(|end| {
        ["jsonl", "json"]
            .iter()
            .any(|known| end.eq_ignore_ascii_case(known))
    }) {
        true => read_records(path, tokenizer, length, held_out, seed),
        false => read_text(path, tokenizer, length, held_out),
    }
}

fn read_records(
    path: &Path,
    tokenizer: &Tokenizer,
    length: usize,
    share: f64,
    seed: u64,
) -> Result<Data> {
    let records: Vec<Record> = read_jsonl(path)?;
    let (training, held_out) = split(records, share, seed)?;
    let prompt = held_out
        .iter()
        .find_map(|record| beginning(record, tokenizer).transpose());
    let name = path.display();
    let options = SequenceOptions::new(length);
    let tokens = |records: &[Record]| -> Result<Vec<Sequence>> {
        sequences(tokenizer, records, &options).with_context(|| format!("cannot use {name}"))
    };
    let (training, held_out) = (tokens(&training)?, tokens(&held_out)?);
    if training.is_empty() || held_out.is_empty() {
        bail!("{name} has too few records to hold some out");
    }
    Ok(Data {
        training,
        held_out,
        kind: "records",
        prompt: prompt.with_context(|| format!("{name} has nothing to begin a sample with"))??,
    })
}

/// What a record gives a model to go on with.
fn beginning(record: &Record, tokenizer: &Tokenizer) -> Result<Option<Prompt>> {
    Ok(match record {
        Record::Completion { prompt, .. } if !prompt.is_empty() => {
            Some(Prompt::new(prompt, tokenizer)?)
        }
        Record::Chat(Chat {
            messages, tools, ..
        }) => {
            let is_answer = |message: &lora::data::Message| message.role() == "assistant";
            let Some(last) = messages
                .iter()
                .rposition(is_answer)
                .filter(|&last| last > 0)
            else {
                return Ok(None);
            };
            let options = ChatOptions::new().tools(tools.iter().cloned()).prompt(true);
            Some(Prompt {
                text: tokenizer.render_chat(&messages[..last], &options)?,
                ids: tokenizer.encode_chat(&messages[..last], &options)?.ids,
            })
        }
        Record::Text(text) if !text.trim().is_empty() => {
            Some(Prompt::new(first_words(text), tokenizer)?)
        }
        _ => None,
    })
}

fn read_text(path: &Path, tokenizer: &Tokenizer, length: usize, share: f64) -> Result<Data> {
    let name = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {name} as a text"))?;
    let tokens = tokenizer.tokenize(&text, false)?;
    let (ids, count) = (tokens.ids, tokens.bytes.len());
    let held_out = (share * count as f64) as usize;
    if held_out < length || length < 2 {
        bail!(
            "{name} has {count} tokens: what is held out, {held_out}, must be at least --max-length, \
             {length}, which must be at least 2"
        );
    }
    let start = count - held_out;
    let passages = |ids: &[u32]| -> Vec<Sequence> {
        let passages = ids.chunks_exact(length);
        passages.map(|ids| Sequence::new(ids.to_vec())).collect()
    };
    let unseen = text.get(tokens.bytes[start].start..).unwrap_or(&text);
    // From the next line on: the cut is anywhere in a word.
    let line = unseen.find('\n').map_or(unseen, |end| &unseen[end..]);
    let prompt = first_words(if line.trim().is_empty() { unseen } else { line });
    Ok(Data {
        training: passages(&ids[..start]),
        held_out: passages(&ids[start..]),
        kind: "passages",
        prompt: Prompt::new(prompt, tokenizer)?,
    })
}

/// The first words of a text, without spaces at its ends.
fn first_words(text: &str) -> &str {
    let text = text.trim_start();
    let Some((end, _)) = text.char_indices().nth(PROMPT) else {
        return text.trim_end();
    };
    let words = text[..end].rfind(char::is_whitespace);
    text[..words.unwrap_or(end)].trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_ends_with_a_word() {
        assert_eq!(first_words("  short "), "short");
        let text = "word ".repeat(20);
        assert_eq!(first_words(&text), text[..59].trim_end());
        assert_eq!(first_words(&"ä".repeat(100)).chars().count(), PROMPT);
    }
}
