//! Trains a small language model on a text: the base model of the examples about text.
//!
//! Every module is trained in full, as in [`pretrain`](crate::pretrain). A token is a byte, so that a
//! text needs no other tokenizer than its bytes; `tokenizer.json` says so to other programs.

use crate::args::{any_number, count, positive};
use crate::bundled::bundled;
use crate::program::say;
use crate::steps::{self, Plan, data_error};
use crate::{interrupt, program, threads};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::ParamsAdamW;
use clap::Parser;
use lora::metrics::Perplexity;
use lora::models::decoder::{Decoder, DecoderConfig, LoraDecoder};
use lora::models::generate::{Settings, generate};
use lora::models::{self, Options, Weights};
use lora::train::{Loss, Source};
use lora::{LoraConfig, LoraModel, LoraModule};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// The token of a text's end, behind the 256 bytes.
const END: u32 = 256;

/// The share of the text, at its end, that is held out.
const HELD_OUT: f64 = 0.1;

/// Trains a small language model of bytes on a text.
///
/// It writes a directory as transformers has it: config.json, model.safetensors in f16, tokenizer.json.
/// The last tenth of the text is held out and only used for the perplexity. The same seed gives the same
/// bytes on the same machine with the same number of threads.
#[derive(Parser)]
#[command(name = "pretrain_text", mut_args(any_number))]
struct Args {
    /// The text [default: two comedies of Shakespeare's, of the repository]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Directory to make; it must not be there yet, or be empty
    #[arg(long, value_name = "DIR", default_value = "output/text")]
    output: PathBuf,
    /// Steps of the training
    #[arg(long, default_value_t = 2400, value_parser = count)]
    steps: usize,
    /// Passages a step
    #[arg(long, default_value_t = 8, value_parser = count)]
    batch: usize,
    /// Bytes of a passage
    #[arg(long, default_value_t = 128, value_parser = count)]
    context: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 3e-3, value_parser = positive)]
    lr: f64,
    /// Seed of the weights and of the passages
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads to compute with [default: RAYON_NUM_THREADS, else all cores]
    #[arg(long, value_parser = threads::parse)]
    threads: Option<usize>,
}

/// The program.
pub fn main() -> ExitCode {
    lora::memory::keep();
    let args = Args::parse();
    program::run(|| {
        threads::set(args.threads, None)?;
        interrupt::catch()?;
        run(&args)
    })
}

fn run(args: &Args) -> Result<()> {
    check_output(&args.output)?;
    let path = match &args.data {
        Some(data) => data.clone(),
        None => bundled("text/plays.txt").context("--data is not given")?,
    };
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (training, held_out) = split(&text, args.context)
        .with_context(|| format!("{} is no text to train on", path.display()))?;
    say(format_args!(
        "{} bytes to train on, {} held out",
        training.len(),
        held_out.len()
    ))?;

    let settings = settings();
    let config: DecoderConfig = serde_json::from_value(settings.clone())?;
    let fresh = models::build::<Decoder>(&config, Weights::Random(args.seed), &Options::new())?;
    let everything = LoraConfig::new(1).modules_to_save(["model", "lm_head"]);
    let mut model = fresh.model.to_lora(&everything)?;
    say(model.summary().totals())?;
    let start = Instant::now();
    train(&mut model, training, args)?;
    let seconds = start.elapsed().as_secs_f64();

    // In f16, as it is saved: what is measured is what others read.
    let weights = halves(&model.to_base()?)?;
    write(&args.output, &weights, &settings)?;
    let saved = models::auto(&args.output, &Options::new())?.into_decoder()?;
    let saved = saved.model.to_frozen()?;
    let [seen, unseen] = [training, held_out].map(|text| perplexity(&saved, text, args));
    say(format_args!(
        "perplexity of a byte {:.3} on text trained on, {:.3} on text held out; {seconds:.0} s",
        seen?, unseen?
    ))?;
    say(format_args!("\n{}\n", sample(&saved, "\n\n", args.seed)?))?;
    say(format_args!("saved {}", args.output.display()))
}

/// The `config.json`: a Llama of 850,000 parameters.
fn settings() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": END + 1,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "bos_token_id": null,
        "eos_token_id": END,
        "torch_dtype": "float16",
    })
}

/// The `tokenizer.json`: byte-level, the byte itself is the token.
fn tokenizer() -> Value {
    let vocabulary: BTreeMap<String, u32> = (0..=255u8)
        .map(|byte| (letter(byte).to_string(), byte.into()))
        .collect();
    let level = json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": false,
        "use_regex": false,
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": END,
            "content": "<|endoftext|>",
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": level,
        "post_processor": null,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": [],
        },
    })
}

/// How byte-level tokenizers write a byte: as itself where that can be seen, else as one of the letters
/// from U+0100 on, in the bytes' order.
fn letter(byte: u8) -> char {
    let is_seen = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_seen(byte) {
        return byte.into();
    }
    let place = (0..byte).filter(|&before| !is_seen(before)).count() as u32;
    char::from_u32(0x100 + place).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The text to train on and the one held out.
fn split(text: &[u8], context: usize) -> Result<(&[u8], &[u8])> {
    let held_out = (text.len() as f64 * HELD_OUT) as usize;
    if context < 2 || held_out < context {
        bail!(
            "it has {} bytes: a tenth of it must be at least --context, {context}, which must be at least 2",
            text.len()
        );
    }
    Ok(text.split_at(text.len() - held_out))
}

/// Passages of the text as ids, (batch, context).
fn batch(passages: &[&[u8]]) -> Result<Tensor> {
    let ids = passages.iter().flat_map(|passage| passage.iter());
    let ids: Vec<i64> = ids.map(|&byte| byte.into()).collect();
    let shape = (passages.len(), ids.len() / passages.len().max(1));
    Ok(Tensor::from_vec(ids, shape, &Device::Cpu)?)
}

/// Passages from anywhere in a text.
struct Passages<'a> {
    text: &'a [u8],
    args: &'a Args,
    rng: ChaCha8Rng,
    /// Batches to come.
    left: usize,
}

impl Source for Passages<'_> {
    type Batch = Tensor;

    fn next_batch(&mut self) -> lora::Result<Option<Tensor>> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        self.left = left;
        let Args {
            batch: count,
            context,
            ..
        } = *self.args;
        let place = || self.rng.random_range(0..=self.text.len() - context);
        let places: Vec<usize> = std::iter::repeat_with(place).take(count).collect();
        let passages = places
            .iter()
            .map(|&place| &self.text[place..place + context]);
        batch(&passages.collect::<Vec<_>>())
            .map(Some)
            .map_err(data_error)
    }

    fn batches_per_epoch(&self) -> Option<usize> {
        Some(self.args.steps)
    }

    fn state(&self) -> lora::Result<Value> {
        Ok(Value::Null)
    }

    fn restore(&mut self, _: &Value) -> lora::Result<()> {
        Err(data_error("this program begins each run anew"))
    }
}

fn train(model: &mut LoraDecoder, text: &[u8], args: &Args) -> Result<()> {
    let plan = Plan {
        epochs: 1,
        steps: args.steps,
        params: ParamsAdamW {
            lr: args.lr,
            beta2: 0.99,
            weight_decay: 0.1,
            ..Default::default()
        },
        clip: Some(1.0),
        seed: args.seed,
    };
    let rng = ChaCha8Rng::seed_from_u64(args.seed);
    let mut passages = Passages {
        text,
        args,
        rng,
        left: args.steps,
    };
    let tokens = args.batch * (args.context - 1);
    steps::train(model, &plan, &mut passages, |model, ids| {
        Ok(Loss::over_tokens(model.loss(ids, None, ids)?, tokens))
    })?;
    Ok(())
}

/// The perplexity of a byte, over at most 200 passages that are spread over the text.
fn perplexity(model: &LoraDecoder, text: &[u8], args: &Args) -> Result<f64> {
    let passages: Vec<&[u8]> = text.chunks_exact(args.context).collect();
    let every = passages.len().div_ceil(200).max(1);
    let passages: Vec<&[u8]> = passages.into_iter().step_by(every).collect();
    let mut perplexity = Perplexity::new();
    for passages in passages.chunks(args.batch) {
        interrupt::check()?;
        let ids = batch(passages)?;
        let loss = model.loss(&ids, None, &ids)?.to_scalar::<f32>()?;
        perplexity.add(loss.into(), passages.len() * (args.context - 1));
    }
    Ok(perplexity.value())
}

/// How the model goes on after a beginning.
fn sample(model: &LoraDecoder, beginning: &str, seed: u64) -> Result<String> {
    let prompt: Vec<u32> = beginning.bytes().map(u32::from).collect();
    let settings = Settings::new()
        .max_new_tokens(300)
        .temperature(0.7)
        .seed(seed);
    let tokens = generate(model, &[prompt], &settings)?.into_tokens()?;
    let bytes = tokens.into_iter().flatten();
    let bytes: Vec<u8> = bytes.filter_map(|token| u8::try_from(token).ok()).collect();
    Ok(String::from_utf8_lossy(&bytes).trim().to_string())
}

/// The weights in f16 under transformers' names.
fn halves(model: &Decoder) -> Result<HashMap<String, Tensor>> {
    let params = model.to_frozen()?.named_params().into_iter();
    let half = params.map(|param| Ok((param.path, param.tensor.to_dtype(DType::F16)?)));
    half.collect()
}

/// Checks that the directory can be made, before minutes go into it.
fn check_output(output: &Path) -> Result<()> {
    let name = output.display();
    if let Ok(mut entries) = fs::read_dir(output) {
        if entries.next().is_some() {
            bail!("--output {name} is not empty: choose another directory");
        }
    } else if output.exists() {
        bail!("--output {name} is a file: it must be a directory");
    }
    let above = above(output);
    fs::create_dir_all(above)
        .and_then(|()| tempfile::tempdir_in(above).map(drop))
        .with_context(|| format!("cannot write --output {name}"))
}

/// The folder that a path stands in.
fn above(path: &Path) -> &Path {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Writes the directory, whole or not at all.
fn write(output: &Path, weights: &HashMap<String, Tensor>, settings: &Value) -> Result<()> {
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let files = [
        (
            "model.safetensors",
            safetensors::serialize(weights, Some(format))?,
        ),
        ("config.json", text(settings)?),
        ("tokenizer.json", text(&tokenizer())?),
    ];
    let write = || -> std::io::Result<()> {
        let staging = tempfile::Builder::new()
            .prefix(".pretrain-")
            .tempdir_in(above(output))?;
        let model = staging.path().join("model");
        fs::create_dir(&model)?;
        for (name, bytes) in &files {
            fs::write(model.join(name), bytes)?;
        }
        if output.exists() {
            // An empty one, else this fails.
            fs::remove_dir(output)?;
        }
        fs::rename(&model, output)
    };
    write().with_context(|| format!("cannot write {}", output.display()))
}

fn text(json: &Value) -> Result<Vec<u8>> {
    let mut text = serde_json::to_string_pretty(json)?;
    text.push('\n');
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_a_letter_of_its_own() {
        let letters: std::collections::BTreeSet<char> = (0..=255).map(letter).collect();
        assert_eq!(letters.len(), 256);
        let found = [b'a', b' ', b'\n', 0, 0x7F, 0xA0, 0xAD, 0xE9].map(letter);
        // As GPT-2's tokenizer has it.
        let expected = ['a', 'Ġ', 'Ċ', 'Ā', 'ġ', 'ł', 'Ń', 'é'];
        assert_eq!(found, expected);
    }
}
