//! A language model learns texts, completions or conversations.

use super::super::kind::{Kind, is_jsonl};
use super::super::settings::Settings;
use super::examples::{self, Examples};
use super::{Prepared, model_fact};
use crate::model::Source;
use anyhow::{Context, Result, bail};
use lora::data::{Pad, Sequence, SequenceOptions, Tokenize, read_sequences};
use lora::models::decoder::Decoder;
use lora::models::{self, Options};
use lora::peft::TaskType;
use lora::text::Tokenizer;
use lora::train::Language;
use std::fs;
use std::path::Path;

pub fn prepare(settings: &Settings) -> Result<Prepared<Language>> {
    let source = Source::find(&settings.model)?;
    let tokenizer = source.tokenizer()?;
    let examples = match is_jsonl(&settings.data) {
        true => records(settings, &tokenizer)?,
        false => passages(settings, &tokenizer)?,
    };
    examples.check(settings)?;
    let base = source.open(&Options::new())?.into_decoder();
    let base = base.with_context(|| {
        format!(
            "{} holds texts, which a language model learns; --model {}",
            settings.data.display(),
            source.name
        )
    })?;
    let lora = settings.lora()?;
    let lora = match lora.target_modules {
        None => lora.target_modules("all-linear"),
        Some(_) => lora,
    };
    models::check_rank::<Decoder>(&base.config, &lora)?;
    let config = &base.config;
    let mut facts = vec![
        model_fact(
            &source,
            &config.model_type,
            config.layers.len(),
            config.hidden_size,
        ),
        examples.fact(settings),
    ];
    if source.is_gguf() {
        facts.push("        the model is quantised: QLoRA".into());
    }
    let pad = Pad::new(tokenizer.pad());
    let pack = |rows: &[Sequence]| -> Result<Language> {
        Ok(Language::packed(rows, settings.max_length, pad)?)
    };
    let packs = settings.pack == Some(true);
    Ok(Prepared {
        base: base.model,
        lora,
        training: match packs {
            true => pack(&examples.training)?,
            false => Language::new(examples.training, pad),
        },
        held_out: (!examples.held_out.is_empty()).then(|| Language::new(examples.held_out, pad)),
        classes: None,
        task: (TaskType::CausalLm, "text-generation"),
        facts,
    })
}

/// The records of the files as tokens.
fn records(settings: &Settings, tokenizer: &Tokenizer) -> Result<Examples<Sequence>> {
    let options = SequenceOptions::new(settings.max_length)
        .learn_prompts(settings.learn_prompts == Some(true));
    let sequences = examples::read_by(settings, Kind::Language, |path| {
        read_sequences(tokenizer, path, &options)
    })?;
    examples::divide(settings, Kind::Language, sequences)
}

/// A text as passages of so many tokens. The last share is held out.
fn passages(settings: &Settings, tokenizer: &Tokenizer) -> Result<Examples<Sequence>> {
    let length = settings.max_length;
    let cut = |ids: &[u32]| -> Vec<Sequence> {
        let passages = ids.chunks_exact(length);
        passages.map(|ids| Sequence::new(ids.to_vec())).collect()
    };
    let ids = tokens(&settings.data, tokenizer)?;
    let name = settings.data.display();
    let (training, held_out) = match &settings.valid {
        Some(valid) if is_jsonl(valid) => bail!(
            "--valid {} holds something else than --data: both must be of one kind",
            valid.display()
        ),
        Some(valid) => (cut(&ids), cut(&tokens(valid, tokenizer)?)),
        None => {
            let held_out = (settings.held_out.unwrap_or(0.0) * ids.len() as f64) as usize;
            if held_out > 0 && held_out < length {
                bail!(
                    "--data {name} has {} tokens: what is held out, {held_out}, must be at least --max-length, \
                     {length}",
                    ids.len()
                );
            }
            let (training, held_out) = ids.split_at(ids.len() - held_out);
            (cut(training), cut(held_out))
        }
    };
    if training.is_empty() {
        bail!(
            "--data {name} has {} tokens, no whole passage of --max-length, {length}",
            ids.len()
        );
    }
    let examples = Examples {
        training,
        held_out,
        called: "passages",
    };
    Ok(examples.limited(settings.eval_limit))
}

fn tokens(path: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let name = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {name} as a text"))?;
    let tokens = tokenizer.tokenize(&text, false);
    Ok(tokens.with_context(|| format!("cannot use {name}"))?.ids)
}
