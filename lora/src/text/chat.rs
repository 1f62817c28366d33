//! Conversations as the model's chat template writes them.

use super::template::{Text, render};
use super::tokenizer::{Encoding, Tokenizer};
use crate::data::Message;
use crate::{Error, Result};
use jiff::civil::DateTime;
use minijinja::value::{Serde, Value};
use serde_json::{Map, Value as Json};

/// Names under which messages hold a model's thoughts. Templates read the first, some the second.
const THOUGHTS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// How a conversation is written.
///
/// ```
/// use lora::text::ChatOptions;
///
/// // For a model that is to answer next, without thinking aloud.
/// let options = ChatOptions::new().prompt(true).with("enable_thinking", false);
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ChatOptions {
    prompt: bool,
    tools: Vec<Json>,
    template: Option<String>,
    values: Map<String, Json>,
    now: Option<String>,
}

impl ChatOptions {
    /// The messages alone, by the model's own template.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the start of an answer follows (`add_generation_prompt`).
    pub fn prompt(mut self, prompt: bool) -> Self {
        self.prompt = prompt;
        self
    }

    /// The tools that the model may call, as JSON schemas.
    pub fn tools(mut self, tools: impl IntoIterator<Item = Json>) -> Self {
        self.tools = tools.into_iter().collect();
        self
    }

    /// Another template: the name of one of the model's, or its source.
    pub fn template(mut self, template: impl Into<String>) -> Self {
        self.template = Some(template.into());
        self
    }

    /// A value that the template reads, such as `enable_thinking`.
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Json>) -> Self {
        self.values.insert(key.into(), value.into());
        self
    }

    /// The time that a template sees in place of the clock's, such as `2026-03-05T12:30:00`: the same
    /// text each day.
    pub fn now(mut self, time: impl Into<String>) -> Self {
        self.now = Some(time.into());
        self
    }
}

impl Tokenizer {
    /// A conversation as text, as `apply_chat_template` of transformers writes it.
    ///
    /// # Errors
    /// [`Error::File`] if the tokenizer has no template, and [`Error::Text`] if the template refuses the
    /// conversation or is damaged.
    pub fn render_chat(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        Ok(self.write_chat(messages, options)?.0)
    }

    /// A conversation as tokens. The template writes all special tokens.
    ///
    /// # Errors
    /// Those of [`render_chat`](Self::render_chat).
    pub fn encode_chat(&self, messages: &[Message], options: &ChatOptions) -> Result<Encoding> {
        self.encode_plain(&self.render_chat(messages, options)?)
    }

    pub(super) fn write_chat(&self, messages: &[Message], options: &ChatOptions) -> Result<Text> {
        if messages.is_empty() {
            return Err(Error::Text(vec!["a conversation has no message".into()]));
        }
        let source = self.template(options.template.as_deref(), !options.tools.is_empty())?;
        let now: Option<DateTime> = match &options.now {
            None => None,
            Some(time) => Some(time.parse().map_err(|error| {
                Error::Text(vec![format!(
                    "the time `{time}`: {error}; write 2026-03-05T12:30:00"
                )])
            })?),
        };
        let tools = match options.tools.is_empty() {
            true => Json::Null,
            false => options.tools.clone().into(),
        };
        let mut values = Map::new();
        for (name, token) in self.special_tokens() {
            values.insert(name.into(), token.into());
        }
        values.insert("documents".into(), Json::Null);
        values.extend(options.values.clone());
        values.insert("messages".into(), messages.iter().map(plain).collect());
        values.insert("tools".into(), tools);
        values.insert("add_generation_prompt".into(), options.prompt.into());
        let refused = |problem| Error::Text(vec![problem]);
        render(source, &Value::from(Serde(values)), now).map_err(refused)
    }
}

/// A message without fields that are null, and with its thoughts under the names that templates read.
fn plain(message: &Message) -> Json {
    let fields = message.fields().iter();
    let fields = fields.filter(|(_, value)| !value.is_null());
    let mut fields: Map<String, Json> = fields
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let thoughts = THOUGHTS.iter().find_map(|&name| fields.get(name)).cloned();
    if let Some(thoughts) = thoughts {
        fields.entry("thinking").or_insert_with(|| thoughts.clone());
        fields.insert(THOUGHTS[0].into(), thoughts);
    }
    Json::Object(fields)
}
