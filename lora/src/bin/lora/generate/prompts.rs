//! What a model is to go on from.

use crate::texts::{is_jsonl, line};
use anyhow::{Context, Result, bail};
use clap::Args;
use lora::data::{Message, read_jsonl};
use lora::text::{ChatOptions, Tokenizer};
use serde::Deserialize;
use serde_json::Value;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Where prompts come from.
#[derive(Clone, Debug, Args)]
pub struct PromptArgs {
    /// Text to go on from; may be given several times
    #[arg(long, short, value_name = "TEXT")]
    prompt: Vec<String>,
    /// File with a prompt on each line, or .jsonl with "prompt" or "messages" and, if you like, "adapter": a
    /// name, a list of names, or [] for the base alone; - for the standard input
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Take a prompt for what a user says, and write it by the model's chat template
    #[arg(long)]
    chat: bool,
    /// With --chat: what the model is told first
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
}

/// What the model is to go on from.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    pub text: Text,
    /// The adapters that act, if the prompt says.
    pub adapters: Option<Vec<String>>,
}

/// A text or a conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Text {
    Plain(String),
    Chat(Vec<Message>),
}

/// A line of JSONL.
#[derive(Deserialize)]
struct Line {
    prompt: Option<PlainOrChat>,
    messages: Option<Vec<Message>>,
    #[serde(default)]
    adapter: Option<Names>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`prompt` is a text or a list of messages")]
enum PlainOrChat {
    Plain(String),
    Chat(Vec<Message>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`adapter` is a name or a list of names")]
enum Names {
    One(String),
    Some(Vec<String>),
}

impl PromptArgs {
    /// All prompts.
    ///
    /// # Errors
    /// If there is none, or the file cannot be read.
    pub fn read(&self) -> Result<Vec<Prompt>> {
        let mut prompts = match &self.prompt_file {
            Some(path) if is_jsonl(path) => jsonl(path)
                .with_context(|| format!("cannot use --prompt-file {}", path.display()))?,
            Some(path) => {
                let text = text_of(path)
                    .with_context(|| format!("cannot read --prompt-file {}", path.display()))?;
                let lines = text.lines().filter(|line| !line.trim().is_empty());
                lines.map(Prompt::plain).collect()
            }
            None => self.prompt.iter().map(|text| Prompt::plain(text)).collect(),
        };
        if prompts.is_empty() {
            match &self.prompt_file {
                Some(path) => bail!("--prompt-file {} holds no prompt", path.display()),
                None => bail!("there is no prompt: say --prompt TEXT or --prompt-file FILE"),
            }
        }
        if self.chat {
            let system = self.system.as_ref();
            prompts.iter_mut().for_each(|prompt| prompt.as_said(system));
        }
        Ok(prompts)
    }
}

impl Prompt {
    fn plain(text: &str) -> Self {
        Self {
            text: Text::Plain(text.into()),
            adapters: None,
        }
    }

    /// Makes a conversation of a text. One that is a conversation already stays as it is.
    fn as_said(&mut self, system: Option<&String>) {
        if let Text::Plain(text) = &self.text {
            let system = system.map(|system| Message::new("system", system.as_str()));
            let user = Message::new("user", text.as_str());
            self.text = Text::Chat(system.into_iter().chain([user]).collect());
        }
    }

    /// Its tokens. The model is to answer a conversation.
    ///
    /// # Errors
    /// If it has none, or the chat template refuses it or is missing.
    pub fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        Ok(match &self.text {
            Text::Plain(text) => tokenizer.encode(text)?.ids,
            Text::Chat(messages) => {
                tokenizer
                    .encode_chat(messages, &ChatOptions::new().prompt(true))?
                    .ids
            }
        })
    }

    /// As the result shows it.
    pub fn json(&self) -> Value {
        match &self.text {
            Text::Plain(text) => text.as_str().into(),
            Text::Chat(messages) => serde_json::to_value(messages).unwrap_or_default(),
        }
    }

    /// The beginning, on one line.
    pub fn short(&self) -> String {
        let text = match &self.text {
            Text::Plain(text) => text.clone(),
            Text::Chat(messages) => {
                let said = messages.last().and_then(Message::text);
                said.unwrap_or("a conversation").into()
            }
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let line = words.join(" ");
        match line.char_indices().nth(60) {
            Some((end, _)) => format!("{}..", &line[..end]),
            None => line,
        }
    }
}

fn text_of(path: &Path) -> io::Result<String> {
    if path != Path::new("-") {
        return fs::read_to_string(path);
    }
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text)?;
    Ok(text)
}

fn jsonl(path: &Path) -> Result<Vec<Prompt>> {
    let lines: Vec<Line> = read_jsonl(path)?;
    let mut prompts = Vec::new();
    for (index, record) in lines.into_iter().enumerate() {
        let at = || line(path, index);
        let mut text = match (record.prompt, record.messages) {
            (Some(PlainOrChat::Plain(text)), None) => Text::Plain(text),
            (Some(PlainOrChat::Chat(messages)), None) | (None, Some(messages)) => {
                Text::Chat(messages)
            }
            (Some(_), Some(_)) => {
                bail!("{} has `prompt` and `messages`: keep one of these", at())
            }
            (None, None) => bail!("{} has neither `prompt` nor `messages`", at()),
        };
        if let Text::Chat(messages) = &mut text {
            // Of a conversation to learn from, the last answer is what is asked for.
            messages.pop_if(|last| last.role() == "assistant");
            if messages.is_empty() {
                bail!("{} has no message to answer", at());
            }
        }
        prompts.push(Prompt {
            text,
            adapters: record.adapter.map(|names| match names {
                Names::One(name) => vec![name],
                Names::Some(names) => names,
            }),
        });
    }
    Ok(prompts)
}
