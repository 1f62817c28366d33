//! The messages of a conversation.

use crate::error::shorten;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A message of a conversation: its role, its content, and whatever else a chat template reads, such as
/// `tool_calls`.
///
/// ```
/// use lora::data::Message;
///
/// let message = Message::new("user", "What is a token?");
/// assert_eq!((message.role(), message.text()), ("user", Some("What is a token?")));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Message(Map<String, Value>);

impl Message {
    /// A message of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let role = ("role".into(), Value::String(role.into()));
        let content = ("content".into(), Value::String(content.into()));
        Self(Map::from_iter([role, content]))
    }

    /// Sets another field.
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.0.insert(key.into(), value.into());
        self
    }

    /// Who speaks, for example `user`.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or("")
    }

    /// The content, if it is text.
    pub fn text(&self) -> Option<&str> {
        self.0.get("content").and_then(Value::as_str)
    }

    /// All fields.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }
}

impl TryFrom<Value> for Message {
    type Error = String;

    /// # Errors
    /// If the value is no object with a `role`.
    fn try_from(value: Value) -> Result<Self, String> {
        let Value::Object(map) = value else {
            let value = shorten(&value.to_string());
            return Err(format!("a message is an object, this one is {value}"));
        };
        match map.get("role") {
            Some(Value::String(_)) => Ok(Self(map)),
            Some(_) => Err("the `role` of a message is text".into()),
            None => Err("a message has no `role`".into()),
        }
    }
}

impl From<Message> for Value {
    fn from(message: Message) -> Self {
        Self::Object(message.0)
    }
}

/// A conversation to learn from.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Chat {
    /// All messages.
    pub messages: Vec<Message>,
    /// The tools that the model may call, as JSON schemas.
    pub tools: Vec<Value>,
    /// The number of messages in front that are a prompt: answers among these are not learned.
    pub prompt: usize,
}

impl Chat {
    /// A conversation all of whose answers are learned.
    pub fn new(messages: impl IntoIterator<Item = Message>) -> Self {
        Self {
            messages: messages.into_iter().collect(),
            ..Self::default()
        }
    }
}
