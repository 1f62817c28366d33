//! Files with a record of JSON on each line.

use super::message::{Chat, Message};
use crate::file::parse_json;
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// More problems than these only say the same again.
pub(super) const MOST_PROBLEMS: usize = 10;

/// Reads a file with a record of JSON on each line. Empty lines are left out.
///
/// ```no_run
/// use lora::data::{Record, read_jsonl};
///
/// let records: Vec<Record> = read_jsonl("train.jsonl")?;
/// # Ok::<(), lora::Error>(())
/// ```
///
/// # Errors
/// [`Error::File`] names each line that is no such record, and the key that is missing; also a file
/// without a record.
pub fn read_jsonl<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<Vec<T>> {
    let records = read_numbered(path.as_ref())?.into_iter();
    Ok(records.map(|(_, record)| record).collect())
}

/// The records of a file, with the numbers of their lines.
pub(super) fn read_numbered<T: DeserializeOwned>(path: &Path) -> Result<Vec<(usize, T)>> {
    lines(path, |number, line| {
        let record = serde_json::from_value(Value::Object(object(line)?));
        Ok((number, record.map_err(|error| error.to_string())?))
    })
}

/// What `read` makes of each line of a file and its number. Errors have the number.
pub(super) fn lines<T>(
    path: &Path,
    mut read: impl FnMut(usize, &[u8]) -> Result<T, String>,
) -> Result<Vec<T>> {
    let failed = |error| Error::file(path, error);
    let file = File::open(path).map_err(failed)?;
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(BufReader::new(file).split(b'\n')) {
        let line = line.map_err(failed)?;
        // Windows' editors put a mark in front of a file.
        let line = match number {
            1 => line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&line),
            _ => &line,
        };
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match read(number, line) {
            Ok(record) => records.push(record),
            Err(problem) => problems.push(format!("line {number}: {problem}")),
        }
        if problems.len() == MOST_PROBLEMS {
            problems.push("there may be more".into());
            break;
        }
    }
    if problems.is_empty() && records.is_empty() {
        problems.push("holds no record: a line of JSON for each is expected".into());
    }
    match problems.is_empty() {
        true => Ok(records),
        false => Err(Error::File {
            path: path.into(),
            problems,
        }),
    }
}

/// The object that a line holds.
pub(super) fn object(line: &[u8]) -> Result<Map<String, Value>, String> {
    let value = parse_json(line).map_err(|error| {
        // serde_json counts lines within the line.
        let text = error.to_string();
        let place = text.find(" at line ").unwrap_or(text.len());
        format!("no JSON: {}, at column {}", &text[..place], error.column())
    })?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err("a JSON object is expected".into()),
    }
}

/// A record for a language model, as TRL and mlx-lm have them:
///
/// | keys | what is learned |
/// |---|---|
/// | `text` | the whole text |
/// | `prompt`, `completion` | the completion; both are texts, or both are lists of messages |
/// | `messages`, and `tools` if there are some | what the assistant says |
///
/// Other keys are left alone.
///
/// ```
/// use lora::data::Record;
///
/// let line = r#"{"prompt": "2 + 2 =", "completion": " 4"}"#;
/// let record: Record = serde_json::from_str(line).unwrap();
/// assert!(matches!(record, Record::Completion { completion, .. } if completion == " 4"));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Record {
    /// A text.
    Text(String),
    /// A text that follows another.
    Completion {
        /// What is given.
        prompt: String,
        /// What is learned.
        completion: String,
    },
    /// A conversation.
    Chat(Chat),
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = Map::deserialize(deserializer)?;
        Self::read(&map).map_err(de::Error::custom)
    }
}

impl Record {
    fn read(map: &Map<String, Value>) -> Result<Self, String> {
        let has = |key: &str| map.contains_key(key);
        let kinds = [
            (has("text"), "`text`"),
            (has("completion"), "`completion`"),
            (has("messages"), "`messages`"),
        ];
        let kinds = kinds.iter().filter(|(has, _)| *has);
        let kinds: Vec<&str> = kinds.map(|&(_, kind)| kind).collect();
        match kinds[..] {
            ["`text`"] => Ok(Self::Text(read(map, "text")?)),
            ["`completion`"] if !has("prompt") => {
                Err("`prompt` is missing, which goes with `completion`".into())
            }
            ["`completion`"] => Self::read_completion(map),
            ["`messages`"] => Ok(Self::Chat(Chat {
                messages: messages(map, "messages")?,
                tools: tools(map)?,
                prompt: 0,
            })),
            [] if has("prompt") => Err("`completion` is missing, which goes with `prompt`".into()),
            [] => Err(format!(
                "`text`, or `prompt` and `completion`, or `messages` is missing; the record has {}",
                keys(map)
            )),
            _ => Err(format!(
                "has {}: keep one of these, which the model is to learn",
                kinds.join(" and ")
            )),
        }
    }

    fn read_completion(map: &Map<String, Value>) -> Result<Self, String> {
        if !map["prompt"].is_array() && !map["completion"].is_array() {
            return Ok(Self::Completion {
                prompt: read(map, "prompt")?,
                completion: read(map, "completion")?,
            });
        }
        let (mut all, completion) = (messages(map, "prompt")?, messages(map, "completion")?);
        let prompt = all.len();
        all.extend(completion);
        Ok(Self::Chat(Chat {
            messages: all,
            tools: tools(map)?,
            prompt,
        }))
    }
}

fn read<T: DeserializeOwned>(map: &Map<String, Value>, key: &str) -> Result<T, String> {
    serde_json::from_value(map[key].clone()).map_err(|error| format!("`{key}`: {error}"))
}

fn messages(map: &Map<String, Value>, key: &str) -> Result<Vec<Message>, String> {
    let messages: Vec<Message> = read(map, key)?;
    match messages.is_empty() {
        true => Err(format!("`{key}` holds no message")),
        false => Ok(messages),
    }
}

/// The tools: a list, or a list as text, as tables of one type for a column have it.
fn tools(map: &Map<String, Value>) -> Result<Vec<Value>, String> {
    match map.get("tools") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => {
            serde_json::from_str(text).map_err(|error| format!("`tools`: {error}"))
        }
        Some(_) => read(map, "tools"),
    }
}

pub(super) fn keys(map: &Map<String, Value>) -> String {
    let keys: Vec<String> = map.keys().map(|key| format!("`{key}`")).collect();
    match keys.is_empty() {
        true => "no key".into(),
        false => crate::error::shorten(&keys.join(", ")),
    }
}

/// A text with its class or its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Labelled {
    /// The text.
    pub text: String,
    /// A second text, of tasks on two texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_pair: Option<String>,
    /// Its label.
    pub label: Label,
}

/// What a text is labelled with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a label is a class's number or name, or a number"
)]
pub enum Label {
    /// The number of a class.
    Class(u32),
    /// A number, to be predicted as such.
    Number(f64),
    /// The name of a class.
    Name(String),
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Class(number) => write!(f, "{number}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => write!(f, "{:?}", crate::error::shorten(name)),
        }
    }
}

/// A text and another that belongs to it, for sentence embeddings, with one that does not if there is one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The text that is searched with.
    #[serde(alias = "query", alias = "sentence1")]
    pub anchor: String,
    /// The text to be found.
    #[serde(alias = "sentence2")]
    pub positive: String,
    /// A text not to be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative: Option<String>,
    /// How alike anchor and positive are, if the data says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}
