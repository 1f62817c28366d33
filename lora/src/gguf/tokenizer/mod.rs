//! A tokenizer in a GGUF file's metadata, as `tokenizer.json` has it.

mod bytes;
mod sentencepiece;

use super::file::GgufFile;
use super::header::Field;
use crate::error::shorten;
use crate::{Error, Result};
use serde_json::{Map, Value, json};

/// What ends in a file's list of types.
const NORMAL: f64 = 1.0;
/// A token that stands for itself, special or not.
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;
const UNUSED: f64 = 5.0;

/// The contents of `tokenizer.json`, and those of `tokenizer_config.json`.
///
/// # Errors
/// If the file has no tokenizer, one of a kind that is not read, or a damaged one.
pub(crate) fn files(file: &GgufFile) -> Result<(Value, Map<String, Value>)> {
    files_of(file).map_err(|problem| Error::file(file.path(), problem))
}

fn files_of(file: &GgufFile) -> Result<(Value, Map<String, Value>), String> {
    let kind = file.text("tokenizer.ggml.model").unwrap_or("missing");
    let parts: fn(&Vocabulary<'_>) -> Result<Value, String> = match kind {
        "gpt2" => bytes::parts,
        "llama" => sentencepiece::parts,
        _ => {
            return Err(format!(
                "has a tokenizer of the kind \"{}\" (`tokenizer.ggml.model`): gpt2 and llama are read. \
                 Read the tokenizer of the model's directory",
                shorten(kind)
            ));
        }
    };
    let vocabulary = Vocabulary::of(file)?;
    let mut tokenizer = parts(&vocabulary)?;
    let config = config(&vocabulary, kind == "llama")?;
    if let Some(tokenizer) = tokenizer.as_object_mut() {
        tokenizer.insert("version".into(), "1.0".into());
        tokenizer.insert("added_tokens".into(), vocabulary.added().into());
        tokenizer.insert("post_processor".into(), ends(&vocabulary, &config));
    }
    Ok((tokenizer, config))
}

/// The tokens of a file, by their numbers.
struct Vocabulary<'a> {
    file: &'a GgufFile,
    tokens: &'a [String],
    /// As many, or none.
    types: &'a [f64],
}

impl<'a> Vocabulary<'a> {
    fn of(file: &'a GgufFile) -> Result<Self, String> {
        let tokens = texts(file, "tokenizer.ggml.tokens")?;
        let types = match file.fields.get("tokenizer.ggml.token_type") {
            Some(Field::Numbers(types)) => types.as_slice(),
            _ => &[],
        };
        if !types.is_empty() && types.len() != tokens.len() {
            return Err(format!(
                "has {} tokens and {} types of tokens",
                tokens.len(),
                types.len()
            ));
        }
        let vocabulary = Self {
            file,
            tokens,
            types,
        };
        match vocabulary.to_json().len() == tokens.len() {
            true => Ok(vocabulary),
            false => Err("has a token twice in `tokenizer.ggml.tokens`".into()),
        }
    }

    fn to_json(&self) -> Map<String, Value> {
        let numbers = (0..).map(Value::from);
        self.tokens.iter().cloned().zip(numbers).collect()
    }

    fn texts(&self, key: &str) -> Result<&'a [String], String> {
        texts(self.file, key)
    }

    /// The type of a token; without a list, all are normal.
    fn kind(&self, token: usize) -> f64 {
        self.types.get(token).copied().unwrap_or(NORMAL)
    }

    /// The token of a key; without the key, the one that the kind of tokenizer has there.
    fn special(&self, key: &str, otherwise: Option<usize>) -> Result<Option<usize>, String> {
        let key = format!("tokenizer.ggml.{key}_token_id");
        match self.file.fields.get(&key) {
            Some(Field::Unsigned(id)) => match usize::try_from(*id) {
                Ok(token) if token < self.tokens.len() => Ok(Some(token)),
                _ => Err(format!(
                    "has `{key}` {id}, but {} tokens",
                    self.tokens.len()
                )),
            },
            _ => Ok(otherwise.filter(|token| *token < self.tokens.len())),
        }
    }

    /// The tokens that are found in a text before all others.
    fn added(&self) -> Vec<Value> {
        let added = self.tokens.iter().enumerate().filter_map(|(id, content)| {
            let kind = self.kind(id);
            let special = kind == CONTROL;
            (special || kind == USER_DEFINED).then(|| {
                json!({"id": id, "content": content, "special": special, "normalized": false,
                   "single_word": false, "lstrip": false, "rstrip": false})
            })
        });
        added.collect()
    }
}

fn texts<'a>(file: &'a GgufFile, key: &str) -> Result<&'a [String], String> {
    match file.fields.get(key) {
        Some(Field::Texts(texts)) => Ok(texts),
        _ => Err(format!("has no list of texts `{key}`")),
    }
}

/// What the metadata say of special tokens and chats, in the words of `tokenizer_config.json`. Where they
/// say nothing, a vocabulary of SentencePiece has its own tokens at their usual numbers, and texts begin
/// with one.
fn config(
    vocabulary: &Vocabulary<'_>,
    is_sentencepiece: bool,
) -> Result<Map<String, Value>, String> {
    let file = vocabulary.file;
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    for (key, name, usual) in [
        ("bos", "bos_token", Some(1)),
        ("eos", "eos_token", Some(2)),
        ("unknown", "unk_token", Some(0)),
        ("padding", "pad_token", None),
        ("seperator", "sep_token", None),
        ("mask", "mask_token", None),
    ] {
        let usual = usual.filter(|_| is_sentencepiece);
        if let Some(token) = vocabulary.special(key, usual)? {
            config.insert(name.into(), vocabulary.tokens[token].as_str().into());
        }
    }
    for (name, usual) in [
        ("add_bos_token", is_sentencepiece),
        ("add_eos_token", false),
    ] {
        let adds = match file.fields.get(&format!("tokenizer.ggml.{name}")) {
            Some(Field::Flag(adds)) => *adds,
            _ => usual,
        };
        config.insert(name.into(), adds.into());
    }
    if let Some(template) = file.text("tokenizer.chat_template") {
        config.insert("chat_template".into(), template.into());
    }
    Ok(config)
}

/// The part of `tokenizer.json` that puts tokens in front of a text and behind it.
fn ends(vocabulary: &Vocabulary<'_>, config: &Map<String, Value>) -> Value {
    let end = |adds: &str, name: &str| {
        let adds = config.get(adds) == Some(&Value::Bool(true));
        config.get(name)?.as_str().filter(|_| adds)
    };
    let (bos, eos) = (
        end("add_bos_token", "bos_token"),
        end("add_eos_token", "eos_token"),
    );
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special = |token: &str, kind: u8| json!({"SpecialToken": {"id": token, "type_id": kind}});
    let around = |name: &str, kind: u8| -> Vec<Value> {
        let text = json!({"Sequence": {"id": name, "type_id": kind}});
        let [bos, eos] = [bos, eos].map(|token| token.map(|token| special(token, kind)));
        [bos, Some(text), eos].into_iter().flatten().collect()
    };
    let tokens = [bos, eos].into_iter().flatten().map(|token| {
        let id = vocabulary.tokens.iter().position(|known| known == token);
        let entry = json!({"id": token, "ids": [id], "tokens": [token]});
        (token.to_string(), entry)
    });
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": tokens.collect::<Map<String, Value>>(),
    })
}
