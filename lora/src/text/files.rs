//! What the files beside a `tokenizer.json` say.

use super::special;
use crate::file::{read_object, read_up_to};
use crate::{Error, Result};
use indexmap::IndexMap;
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};
use tokenizers::{AddedToken, TruncationDirection};

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const SENTENCES: &str = "sentence_bert_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";
const TEMPLATES: &str = "additional_chat_templates";
const DEFAULT: &str = "default";

/// transformers writes 1e30 for a length without a limit.
const UNLIMITED: f64 = 1e9;

/// What a directory says of its tokenizer.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    pub(super) directory: PathBuf,
    /// Special tokens by their names.
    pub(super) special: Vec<(&'static str, String)>,
    /// Special tokens without a name.
    pub(super) unnamed: Vec<String>,
    /// The tokens of `added_tokens_decoder`.
    pub(super) added: Vec<AddedToken>,
    /// The longest sequence of the model.
    pub(super) longest: Option<usize>,
    pub(super) cut: TruncationDirection,
    pub(super) pads_left: bool,
    /// `add_bos_token` and `add_eos_token`, where these are given.
    pub(super) adds: [Option<bool>; 2],
    templates: IndexMap<String, String>,
}

impl Files {
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let optional = |name: &str| match directory.join(name) {
            path if path.exists() => read_object(&path),
            _ => Ok(Map::new()),
        };
        let (config, tokens) = (optional(CONFIG)?, optional(SPECIAL)?);
        let mut problems = Vec::new();
        let files = Self {
            directory: directory.into(),
            special: special::named(&[&config, &tokens]),
            unnamed: [special::unnamed(&config), special::unnamed(&tokens)].concat(),
            added: added(&config, &mut problems),
            longest: longest(&optional(SENTENCES)?, &config),
            cut: match side(&config, "truncation_side", &mut problems) {
                true => TruncationDirection::Left,
                false => TruncationDirection::Right,
            },
            pads_left: side(&config, "padding_side", &mut problems),
            adds: ["add_bos_token", "add_eos_token"].map(|key| config.get(key)?.as_bool()),
            templates: templates(directory, &config)?,
        };
        match problems.is_empty() {
            true => Ok(files),
            false => Err(Error::File {
                path: directory.join(CONFIG),
                problems,
            }),
        }
    }

    /// The template of this name, this template itself, or the model's own. Among several, the one for
    /// tools is `tool_use`.
    pub(super) fn template<'a>(&'a self, wanted: Option<&'a str>, tools: bool) -> Result<&'a str> {
        let named = |name: &str| self.templates.get(name).map(String::as_str);
        let own = || match tools {
            true => named("tool_use").or_else(|| named(DEFAULT)),
            false => named(DEFAULT),
        };
        let missing = |problem: String| Err(Error::file(&self.directory, problem));
        let names = || {
            let names: Vec<String> = self
                .templates
                .keys()
                .map(|name| format!("`{name}`"))
                .collect();
            names.join(", ")
        };
        match (wanted, own()) {
            (Some(wanted), _) => match named(wanted) {
                Some(template) => Ok(template),
                // A source holds a tag or a line; a name does not.
                None if wanted.contains(['{', '\n']) => Ok(wanted),
                None => missing(format!(
                    "has no chat template `{wanted}`; there are: {}",
                    names()
                )),
            },
            (None, Some(template)) => Ok(template),
            (None, None) if self.templates.is_empty() => missing(format!(
                "has no chat template: neither {TEMPLATE}, nor {TEMPLATE_JSON}, nor `chat_template` in \
                 {CONFIG}; give one with ChatOptions::template"
            )),
            (None, None) => missing(format!(
                "has several chat templates, and none is the default: choose with ChatOptions::template \
                 among {}",
                names()
            )),
        }
    }
}

/// Whether a setting says `left`.
fn side(config: &Map<String, Value>, key: &str, problems: &mut Vec<String>) -> bool {
    match config.get(key) {
        None | Some(Value::Null) => false,
        Some(Value::String(side)) if side == "left" => true,
        Some(Value::String(side)) if side == "right" => false,
        Some(other) => {
            problems.push(format!("`{key}` is {other}: `left` or `right` is expected"));
            false
        }
    }
}

fn longest(sentences: &Map<String, Value>, config: &Map<String, Value>) -> Option<usize> {
    let values = [
        sentences.get("max_seq_length"),
        config.get("model_max_length"),
    ];
    let mut values = values.into_iter().flatten().filter_map(Value::as_f64);
    let longest = values.next()?;
    (longest >= 1.0 && longest < UNLIMITED).then_some(longest as usize)
}

fn added(config: &Map<String, Value>, problems: &mut Vec<String>) -> Vec<AddedToken> {
    let Some(Value::Object(tokens)) = config.get("added_tokens_decoder") else {
        return Vec::new();
    };
    let mut tokens: Vec<(&String, &Value)> = tokens.iter().collect();
    tokens.sort_by_key(|(id, _)| id.parse().unwrap_or(u64::MAX));
    let mut read = Vec::new();
    for (id, token) in tokens {
        let content = token.get("content").and_then(Value::as_str);
        let Some(content) = content else {
            problems.push(format!("`added_tokens_decoder.{id}` has no `content`"));
            continue;
        };
        let is = |key: &str| token.get(key).and_then(Value::as_bool);
        let special = is("special").unwrap_or(false);
        read.push(
            AddedToken::from(content, special)
                .lstrip(is("lstrip").unwrap_or(false))
                .rstrip(is("rstrip").unwrap_or(false))
                .single_word(is("single_word").unwrap_or(false))
                .normalized(is("normalized").unwrap_or(!special)),
        );
    }
    read
}

/// The chat templates by name. Those in files of their own come before that of the configuration.
fn templates(directory: &Path, config: &Map<String, Value>) -> Result<IndexMap<String, String>> {
    let mut templates = IndexMap::new();
    let alone = directory.join(TEMPLATE);
    if alone.exists() {
        templates.insert(DEFAULT.to_string(), read_text(&alone)?);
    }
    let folder = directory.join(TEMPLATES);
    if folder.is_dir() {
        let failed = |error| Error::file(&folder, error);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_stem().and_then(|name| name.to_str());
            if let Some(name) = name.filter(|_| path.extension().is_some_and(|end| end == "jinja"))
            {
                templates.insert(name.to_string(), read_text(&path)?);
            }
        }
    }
    let json = directory.join(TEMPLATE_JSON);
    if templates.is_empty() && json.exists() {
        read_templates(&read_object(&json)?, &json, &mut templates)?;
    }
    if templates.is_empty() {
        read_templates(config, &directory.join(CONFIG), &mut templates)?;
    }
    Ok(templates)
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = read_up_to(path, 1, "a chat template")?;
    String::from_utf8(bytes).map_err(|_| Error::file(path, "is no text in UTF-8"))
}

/// The templates of a `chat_template`: one, or a list of several with names.
fn read_templates(
    map: &Map<String, Value>,
    path: &Path,
    templates: &mut IndexMap<String, String>,
) -> Result<()> {
    let problem = || {
        let expected =
            "`chat_template` is neither a text nor a list of objects with `name` and `template`";
        Error::file(path, expected)
    };
    match map.get("chat_template") {
        None | Some(Value::Null) => {}
        Some(Value::String(template)) => {
            templates.insert(DEFAULT.into(), template.clone());
        }
        Some(Value::Array(list)) => {
            for entry in list {
                let text = |key: &str| entry.get(key).and_then(Value::as_str).map(String::from);
                let (Some(name), Some(template)) = (text("name"), text("template")) else {
                    return Err(problem());
                };
                templates.insert(name, template);
            }
        }
        Some(Value::Object(named)) => {
            for (name, template) in named {
                let template = template.as_str().ok_or_else(problem)?;
                templates.insert(name.clone(), template.into());
            }
        }
        Some(_) => return Err(problem()),
    }
    Ok(())
}
