//! `lora chat`: a conversation with a language model.

use crate::generate::{Sampling, activate};
use crate::model::{ModelArgs, load};
use crate::shell::common::Common;
use crate::shell::print::{note, say, stream};
use anyhow::{Context, Result};
use clap::Args;
use lora::LoraModule;
use lora::data::Message;
use lora::models::decoder::LoraDecoder;
use lora::models::generate::{Session, Settings};
use lora::text::{ChatOptions, Tokenizer, generate_after};
use serde_json::json;
use std::io::{self, BufRead, IsTerminal, Write};

const HELP: &str = "\
/adapter [NAMES]  these adapters act from now on, separated by spaces; none without a name
/exit             end; so does the end of the input, Ctrl-D
/help             this
/reset            forget the conversation";

/// The options.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    model: ModelArgs,
    /// What the model is told first
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    common: Common,
}

/// Talks until the input ends.
///
/// # Errors
/// If model or adapters cannot be used.
pub fn run(options: &Options) -> Result<()> {
    options.common.start()?;
    let named = options.model.find()?;
    let tokenizer = named.source.tokenizer()?;
    let settings = options
        .sampling
        .settings(named.source.generation(&tokenizer)?)?;
    // Before the work: whether there is a template.
    let hello = [Message::new("user", "Hello")];
    let rendered = tokenizer.render_chat(&hello, &ChatOptions::new().prompt(true));
    rendered
        .context("lora chat writes by the model's chat template; lora generate does without")?;
    let created = named.open()?.into_decoder()?;
    let mut talk = Talk {
        model: load(&created.model, &named.adapters)?,
        tokenizer,
        settings,
        system: options.system.clone(),
        messages: Vec::new(),
        session: Session::new(),
        answers: 0,
        shown: !options.common.json,
    };
    talk.reset();
    let is_asked = io::stdin().is_terminal();
    if is_asked {
        note("/help says what can be done, /exit ends")?;
    }
    let mut lines = io::stdin().lock().lines();
    loop {
        if is_asked {
            // Where nobody sees it, nobody is asked.
            let _ = write!(io::stderr(), "> ");
        }
        let Some(line) = lines.next() else { break };
        let line = line.context("cannot read the standard input: a line of text is expected")?;
        if talk.hear(line.trim())? {
            break;
        }
    }
    match options.common.json {
        true => say(json!({"model": named.source.name, "messages": talk.messages})),
        false => Ok(()),
    }
}

/// A conversation.
struct Talk {
    model: LoraDecoder,
    tokenizer: Tokenizer,
    settings: Settings,
    system: Option<String>,
    messages: Vec<Message>,
    /// What the model has seen of the conversation.
    session: Session<LoraDecoder>,
    answers: u64,
    shown: bool,
}

impl Talk {
    /// Takes a line, and says whether it was the last.
    fn hear(&mut self, line: &str) -> Result<bool> {
        let mut words = line.split_whitespace();
        match words.next() {
            None => {}
            Some("/exit" | "/quit") => return Ok(true),
            Some("/help") => note(HELP)?,
            Some("/reset") => self.reset(),
            Some("/adapter") => self.switch(&words.map(String::from).collect::<Vec<_>>())?,
            Some(word) if word.starts_with('/') => {
                note(format_args!("there is no {word}:\n{HELP}"))?;
            }
            Some(_) => self.answer(line)?,
        }
        Ok(false)
    }

    fn reset(&mut self) {
        let system = self.system.iter();
        self.messages = system
            .map(|text| Message::new("system", text.as_str()))
            .collect();
        self.session = Session::new();
    }

    /// Lets other adapters act. They read the conversation anew.
    fn switch(&mut self, names: &[String]) -> Result<()> {
        match activate(&mut self.model, names) {
            Ok(()) => self.session = Session::new(),
            Err(error) => note(format_args!("{error:#}"))?,
        }
        let there = self.model.adapter_names().join(", ");
        let acting = self.model.active_adapters().join(", ");
        let acting = if acting.is_empty() { "none" } else { &acting };
        note(format_args!("adapters: {there}; acting: {acting}"))
    }

    fn answer(&mut self, line: &str) -> Result<()> {
        self.messages.push(Message::new("user", line));
        let options = ChatOptions::new().prompt(true);
        let ids = match self.tokenizer.encode_chat(&self.messages, &options) {
            Ok(encoding) => encoding.ids,
            Err(error) => {
                self.messages.pop();
                return note(format_args!("the chat template refuses this: {error}"));
            }
        };
        let settings = self.settings.clone();
        let settings = settings.seed(self.settings.seed.wrapping_add(self.answers));
        self.answers += 1;
        let session = std::mem::take(&mut self.session);
        let (model, tokenizer) = (&self.model, &self.tokenizer);
        let mut written = generate_after(model, session, tokenizer, &ids, &settings)?;
        let (mut text, mut tokens) = (String::new(), 0);
        for pieces in written.by_ref() {
            let piece = pieces?.concat();
            tokens += 1;
            text.push_str(&piece);
            if self.shown && !piece.is_empty() {
                stream(piece)?;
            }
        }
        self.session = written.into_session();
        if self.shown {
            say("")?;
        }
        if tokens == settings.max_new_tokens {
            note(format_args!("(at most {tokens} tokens: --max-tokens)"))?;
        }
        self.messages.push(Message::new("assistant", text));
        Ok(())
    }
}
