//! Generated tokens a second, beside candle-transformers' own Llama.
//!
//! ```sh
//! cargo bench -p lora-candle --bench generate             # SmolLM2-135M's shape, in about a minute
//! cargo bench -p lora-candle --bench generate -- --test   # a tiny model, untimed
//! cargo bench -p lora-candle --bench generate -- --gguf SmolLM2-135M-Instruct.Q4_1.gguf
//! ```
//!
//! Random weights and greedy choice: the time does not depend on the values. With `--gguf` the weights are
//! those of a Llama's file, in its blocks, and candle-transformers' quantised Llama runs beside. The
//! prompt's time is that of the first token. Each line runs in turn with the others; the table holds the
//! medians.

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, IndexOp, Result, Tensor, bail};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::llama;
use candle_transformers::models::quantized_llama::ModelWeights;
use lora::models::decoder::{Decoder, DecoderConfig, from_gguf};
use lora::models::generate::{Settings, generate};
use lora::models::{self, Created, Options, Weights};
use lora::{Lora, LoraConfig, LoraModel, LoraModule};
use std::fs::File;
use std::path::Path;
use std::time::Instant;

const SMOLLM2: &str = r#"{
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": true
}"#;

const TINY: &str = r#"{
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 100, "max_position_embeddings": 512, "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": true
}"#;

const PROMPT: usize = 128;

fn main() -> Result<()> {
    lora::memory::keep();
    // As a program does: a thread outside rayon's pool would wait to be woken after each product.
    let pool = rayon::ThreadPoolBuilder::new().use_current_thread();
    pool.build_global().map_err(candle_core::Error::wrap)?;
    let arguments: Vec<String> = std::env::args().collect();
    let test = arguments.iter().any(|argument| argument == "--test");
    let gguf = arguments.iter().position(|argument| argument == "--gguf");
    let (shape, tokens, rounds) = if test { (TINY, 4, 1) } else { (SMOLLM2, 64, 5) };
    let runs = match gguf.and_then(|place| arguments.get(place + 1)) {
        Some(file) => of_file(Path::new(file))?,
        None => of_shape(shape)?,
    };
    let mut times = vec![Vec::new(); runs.len()];
    for _ in 0..rounds {
        for (run, times) in runs.iter().zip(&mut times) {
            times.push((run.generate)(tokens)?);
        }
    }
    println!("| model | prompt of {PROMPT} tokens, s | tokens a second |");
    println!("|---|---:|---:|");
    for (run, times) in runs.iter().zip(&times) {
        let median = |part: fn(&[f64; 2]) -> f64| {
            let mut times: Vec<f64> = times.iter().map(part).collect();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let (prompt, rest) = (median(|time| time[0]), median(|time| time[1]));
        let made = ((tokens - 1) * run.prompts) as f64;
        println!("| {} | {prompt:.3} | {:.1} |", run.name, made / rest);
    }
    Ok(())
}

/// Models with random weights.
fn of_shape(shape: &str) -> Result<Vec<Run>> {
    Ok(vec![
        Run::candle(shape)?,
        Run::ours("lora, base", shape, 1, |base| Ok(base.to_frozen()?))?,
        Run::ours("lora, rank 8 on all layers", shape, 1, adapted)?,
        Run::ours("the same, merged", shape, 1, |base| {
            let mut model = adapted(base)?;
            model.merge()?;
            Ok(model)
        })?,
        Run::ours("rank 8, eight prompts at once", shape, 8, adapted)?,
    ])
}

/// The model of a GGUF file.
fn of_file(file: &Path) -> Result<Vec<Run>> {
    let base = || Ok::<_, candle_core::Error>(from_gguf(file, &Options::new())?);
    Ok(vec![
        Run::quantised_candle(file)?,
        Run::of("lora, base", base()?, 1, |base| Ok(base.to_frozen()?))?,
        Run::of("lora, rank 8 on all layers", base()?, 1, adapted)?,
        Run::of("rank 8, eight prompts at once", base()?, 8, adapted)?,
    ])
}

/// A model that makes so many tokens, and says the seconds to the first one and from there to the last.
struct Run {
    name: &'static str,
    prompts: usize,
    generate: Box<dyn Fn(usize) -> Result<[f64; 2]>>,
}

impl Run {
    fn candle(shape: &str) -> Result<Self> {
        let config: llama::LlamaConfig =
            serde_json::from_str(shape).map_err(candle_core::Error::wrap)?;
        let config = config.into_config(false);
        let variables = VarMap::new();
        let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
        llama::Llama::load(vb, &config)?;
        // The same weights as plain tensors, which keep no graph.
        let data = variables
            .data()
            .lock()
            .expect("nobody else has the variables");
        let tensors = data
            .iter()
            .map(|(name, var)| (name.clone(), var.as_detached_tensor()));
        let vb = VarBuilder::from_tensors(tensors.collect(), DType::F32, &Device::Cpu);
        let model = llama::Llama::load(vb, &config)?;
        let generate = move |tokens| {
            let mut cache = llama::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
            greedy(config.vocab_size, tokens, |ids, place| {
                model.forward(ids, place, &mut cache)
            })
        };
        Ok(Self {
            name: "candle-transformers",
            prompts: 1,
            generate: Box::new(generate),
        })
    }

    fn quantised_candle(path: &Path) -> Result<Self> {
        let mut file = File::open(path)?;
        let content = gguf_file::Content::read(&mut file)?;
        let vocabulary = match content.tensor_infos.get("token_embd.weight") {
            Some(info) => info.shape.dims()[0],
            None => bail!("{} is no language model", path.display()),
        };
        let model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
        let generate = move |tokens| {
            // A new sequence begins at place 0, which drops what its cache holds.
            let mut model = model.clone();
            greedy(vocabulary, tokens, |ids, place| model.forward(ids, place))
        };
        Ok(Self {
            name: "candle-transformers, quantised",
            prompts: 1,
            generate: Box::new(generate),
        })
    }

    fn ours(
        name: &'static str,
        shape: &str,
        prompts: usize,
        convert: impl Fn(Decoder) -> Result<Lora<Decoder>>,
    ) -> Result<Self> {
        let config: DecoderConfig =
            serde_json::from_str(shape).map_err(candle_core::Error::wrap)?;
        let base = models::build::<Decoder>(&config, Weights::Random(0), &Options::new())?;
        Self::of(name, base, prompts, convert)
    }

    fn of(
        name: &'static str,
        base: Created<Decoder>,
        prompts: usize,
        convert: impl Fn(Decoder) -> Result<Lora<Decoder>>,
    ) -> Result<Self> {
        let prompt = vec![prompt(base.config.vocab_size); prompts];
        let mut model = convert(base.model)?;
        model.eval();
        let generate = move |tokens| {
            let settings = Settings::new().max_new_tokens(tokens);
            let start = Instant::now();
            let mut first = None;
            for step in generate(&model, &prompt, &settings)? {
                step?;
                first.get_or_insert_with(|| start.elapsed().as_secs_f64());
            }
            let first = first.unwrap_or_default();
            Ok([first, start.elapsed().as_secs_f64() - first])
        };
        Ok(Self {
            name,
            prompts,
            generate: Box::new(generate),
        })
    }
}

/// The seconds to the first of so many tokens, and from there to the last.
fn greedy(
    vocabulary: usize,
    tokens: usize,
    mut forward: impl FnMut(&Tensor, usize) -> Result<Tensor>,
) -> Result<[f64; 2]> {
    let start = Instant::now();
    let mut input = prompt(vocabulary);
    let (mut place, mut first) = (0, 0.0);
    for index in 0..tokens {
        let ids = Tensor::new(input.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let logits = forward(&ids, place)?.i(0)?;
        place += input.len();
        input = vec![logits.argmax(0)?.to_scalar()?];
        if index == 0 {
            first = start.elapsed().as_secs_f64();
        }
    }
    Ok([first, start.elapsed().as_secs_f64() - first])
}

fn adapted(base: Decoder) -> Result<Lora<Decoder>> {
    Ok(base.to_lora(&LoraConfig::new(8).target_modules("all-linear"))?)
}

fn prompt(vocabulary: usize) -> Vec<u32> {
    (0..PROMPT)
        .map(|index| (index * 37 % vocabulary) as u32)
        .collect()
}
