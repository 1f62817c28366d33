//! `lora generate`: what a language model writes behind prompts.

mod prompts;
mod sampling;

pub use sampling::Sampling;

use crate::model::{ModelArgs, load};
use crate::shell::common::Common;
use crate::shell::print::{say, stream};
use anyhow::{Context, Result, bail};
use clap::Args;
use lora::LoraModule;
use lora::models::decoder::LoraDecoder;
use lora::models::generate::Settings;
use lora::text::{Tokenizer, generate};
use prompts::{Prompt, PromptArgs};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::Instant;

/// The options.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompts: PromptArgs,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    common: Common,
}

/// What the model wrote behind a prompt.
#[derive(Debug, Serialize)]
struct Written {
    prompt: Value,
    text: String,
    tokens: usize,
    /// `stop` before a stop token or text, `length` at the most tokens.
    ended: &'static str,
    adapters: Vec<String>,
}

/// Does it.
///
/// # Errors
/// If model, adapters or prompts cannot be used.
pub fn run(options: &Options) -> Result<()> {
    options.common.start()?;
    let prompts = options.prompts.read()?;
    let named = options.model.find()?;
    let tokenizer = named.source.tokenizer()?;
    let settings = options
        .sampling
        .settings(named.source.generation(&tokenizer)?)?;
    let names: Vec<String> = named.adapters.iter().map(|one| one.name.clone()).collect();
    let encoded = encode(&prompts, &tokenizer, &names)?;
    let created = named.open()?.into_decoder()?;
    let mut model = load(&created.model, &named.adapters)?;

    let (start, json) = (Instant::now(), options.common.json);
    let mut results = Vec::new();
    for (index, (prompt, ids)) in prompts.iter().zip(&encoded).enumerate() {
        if prompts.len() > 1 && !json {
            let gap = if index > 0 { "\n" } else { "" };
            say(format_args!("{gap}--- {}: {}", index + 1, prompt.short()))?;
        }
        let adapters = prompt.adapters.as_ref().unwrap_or(&names);
        activate(&mut model, adapters)?;
        let seed = settings.seed.wrapping_add(index as u64);
        let settings = settings.clone().seed(seed);
        let mut written = write(&model, &tokenizer, ids, &settings, !json)?;
        written.prompt = prompt.json();
        written.adapters = adapters.clone();
        results.push(written);
    }
    if !json {
        return Ok(());
    }
    say(json!({
        "model": named.source.name,
        "results": results,
        "seconds": start.elapsed().as_secs_f64(),
    }))
}

/// The prompts' tokens; and checks that the adapters which they name are there.
fn encode(prompts: &[Prompt], tokenizer: &Tokenizer, names: &[String]) -> Result<Vec<Vec<u32>>> {
    let mut encoded = Vec::new();
    for (number, prompt) in (1..).zip(prompts) {
        let mut asked = prompt.adapters.iter().flatten();
        if let Some(unknown) = asked.find(|name| !names.contains(name)) {
            let there = match names {
                [] => "there is none".into(),
                names => format!("there are {}", names.join(", ")),
            };
            bail!(
                "prompt {number} asks for the adapter {unknown}, {there}: say --adapter {unknown}=DIR"
            );
        }
        let cannot = || format!("cannot use prompt {number}, {}", prompt.short());
        encoded.push(prompt.encode(tokenizer).with_context(cannot)?);
    }
    Ok(encoded)
}

/// Lets these adapters act, and no others.
///
/// # Errors
/// If the model lacks one of them, or they cannot act together.
pub fn activate(model: &mut LoraDecoder, names: &[String]) -> Result<()> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    if model.active_adapters() != names {
        model.set_active(&names)?;
        model.eval();
    }
    Ok(())
}

/// Lets the model write behind a prompt, and shows the text as it comes, if that is asked for.
fn write(
    model: &LoraDecoder,
    tokenizer: &Tokenizer,
    ids: &[u32],
    settings: &Settings,
    shown: bool,
) -> Result<Written> {
    let (mut text, mut tokens) = (String::new(), 0);
    for pieces in generate(model, tokenizer, &[ids], settings)? {
        let piece = pieces?.concat();
        tokens += 1;
        text.push_str(&piece);
        if shown && !piece.is_empty() {
            stream(piece)?;
        }
    }
    if shown {
        say("")?;
    }
    Ok(Written {
        prompt: Value::Null,
        text,
        tokens,
        ended: if tokens < settings.max_new_tokens {
            "stop"
        } else {
            "length"
        },
        adapters: Vec::new(),
    })
}
