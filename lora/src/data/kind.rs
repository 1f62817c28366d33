//! What the records of a file are, by their keys.

use super::records::{keys, lines, object};
use crate::Result;
use serde_json::{Map, Value};
use std::fmt;
use std::path::Path;

/// What the records of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataKind {
    /// `text`: a [`Record`](super::Record).
    Text,
    /// `prompt` and `completion`: a [`Record`](super::Record).
    Completion,
    /// `messages`: a [`Record`](super::Record).
    Chat,
    /// `text` and `label`: a [`Labelled`](super::Labelled) text.
    Labelled,
    /// `anchor` and `positive`, or `query` or `sentence1` and `sentence2`: a [`Pair`](super::Pair).
    Pairs,
}

impl DataKind {
    /// What the records of a JSONL file are.
    ///
    /// ```
    /// use lora::data::DataKind;
    ///
    /// let dir = tempfile::tempdir().unwrap();
    /// let path = dir.path().join("train.jsonl");
    /// std::fs::write(&path, r#"{"text": "cheap!", "label": "spam"}"#).unwrap();
    /// assert_eq!(DataKind::of(&path)?, DataKind::Labelled);
    /// # Ok::<(), lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) names each line that is no record of a known kind, or of another
    /// kind than the first.
    pub fn of(path: impl AsRef<Path>) -> Result<Self> {
        let mut first = None;
        let kinds = lines(path.as_ref(), |_, line| {
            let kind = Self::of_record(&object(line)?)?;
            match *first.get_or_insert(kind) {
                first if first == kind => Ok(kind),
                first => Err(format!(
                    "has {kind}, the records before have {first}: all must be of one kind"
                )),
            }
        })?;
        Ok(kinds[0])
    }

    fn of_record(map: &Map<String, Value>) -> Result<Self, String> {
        let has = |key: &str| map.contains_key(key);
        if has("messages") {
            return Ok(Self::Chat);
        }
        if has("prompt") || has("completion") {
            return Ok(Self::Completion);
        }
        if ["anchor", "positive", "query", "sentence1", "sentence2"]
            .iter()
            .any(|key| has(key))
        {
            return Ok(Self::Pairs);
        }
        match (has("text"), has("label")) {
            (true, true) => Ok(Self::Labelled),
            (true, false) => Ok(Self::Text),
            _ => Err(format!(
                "has {}: `text`, or `prompt` and `completion`, or `messages`, or `text` and `label`, or `anchor` \
                 and `positive` are expected",
                keys(map)
            )),
        }
    }
}

impl fmt::Display for DataKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "`text`",
            Self::Completion => "`prompt` and `completion`",
            Self::Chat => "`messages`",
            Self::Labelled => "`text` and `label`",
            Self::Pairs => "pairs such as `anchor` and `positive`",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_records_are_of_one_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        let kind = |text: &str| {
            std::fs::write(&path, text).unwrap();
            DataKind::of(&path).map_err(|error| {
                let text = error.to_string();
                text.replace(&path.display().to_string(), "FILE")
            })
        };
        let of = |text: &str| kind(text).unwrap();
        assert_eq!(of(r#"{"text": "a"}"#), DataKind::Text);
        assert_eq!(of(r#"{"sentence1": "a", "score": 1}"#), DataKind::Pairs);
        assert_eq!(of(r#"{"messages": []}"#), DataKind::Chat);
        assert_eq!(
            kind("{\"text\": \"a\"}\n\n{\"text\": \"b\", \"label\": 1}\n").unwrap_err(),
            "FILE: line 3: has `text` and `label`, the records before have `text`: all must be of one kind"
        );
        assert_eq!(
            kind(r#"{"body": 1}"#).unwrap_err(),
            "FILE: line 1: has `body`: `text`, or `prompt` and `completion`, or `messages`, or `text` and \
             `label`, or `anchor` and `positive` are expected"
        );
    }
}
