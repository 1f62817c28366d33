//! What several ranks cost: a step's time and traffic with one rank, two and four, over MPI on this machine.
//!
//! ```sh
//! cargo bench -p lora-candle --features mpi --bench ranks             # two to four minutes on two cores
//! cargo bench -p lora-candle --features mpi --bench ranks -- --test   # tiny models, untimed
//! OMPI_MCA_btl=tcp,self cargo bench ..                                # over TCP in place of shared memory
//! ```
//!
//! The program starts itself by `mpirun`. Weights are random, rank 8: MiniLM's shape with adapters on query
//! and value, SmolLM2-135M's with adapters on all linear layers. A rank has one thread and as many examples
//! as the one rank beside it, so that a step should take as long where each rank has a core. The sums of that
//! many numbers are measured by themselves, too. `docs/scaling.md` reckons from these figures.

use candle_core::{Device, Tensor};
use lora::data::BatchOptions;
use lora::models::decoder::{Decoder, DecoderConfig};
use lora::models::encoder::{Encoder, EncoderConfig, Inputs};
use lora::models::{self, Options, Weights};
use lora::optim::LoraPlus;
use lora::train::{Event, Every, Examples, Loss, Parallel, TrainOptions, Trainer};
use lora::{Error, Lora, LoraConfig, LoraModel, LoraModule, Result};
use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::CommunicatorCollectives;
use std::cell::Cell;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// Tells a process that it is a rank.
const IS_RANK: &str = "LORA_BENCH_RANK";

const MINILM: &str = r#"{
    "model_type": "bert", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
    "num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512,
    "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12
}"#;

const SMOLLM2: &str = r#"{
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": true
}"#;

/// What is measured.
struct Shape {
    /// Texts a rank in a step.
    batch: usize,
    /// Tokens of a text.
    length: usize,
    steps: usize,
}

fn main() -> ExitCode {
    lora::memory::keep();
    let test = std::env::args().any(|argument| argument == "--test");
    let done = match std::env::var_os(IS_RANK) {
        Some(_) => Parallel::mpi(|parallel| work(parallel, test)),
        None => start(test),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the ranks: one, two and four with a thread each, one with two threads and the batches of two.
fn start(test: bool) -> Result<()> {
    println!(
        "| model | ranks | threads a rank | texts a step | step, s | texts a second | summed a step, bytes \
         | the sum alone, ms | the largest of 20, ms | broadcast at the start, bytes |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (ranks, threads) in [("1", "1"), ("2", "1"), ("4", "1"), ("1", "2")] {
        let mut command = Command::new("mpirun");
        command
            .args(["-n", ranks])
            .arg(std::env::current_exe().map_err(failed)?);
        command.args(test.then_some("--test"));
        for (name, value) in [
            (IS_RANK, threads),
            ("RAYON_NUM_THREADS", threads),
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("OMPI_MCA_hwloc_base_binding_policy", "none"),
            ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
            ("OMPI_MCA_btl_vader_single_copy_mechanism", "none"),
        ] {
            command.env(name, value);
        }
        let status = command
            .status()
            .map_err(|error| failed(format!("mpirun: {error}")))?;
        if !status.success() {
            return Err(failed(format!("mpirun ended with {status}")));
        }
    }
    Ok(())
}

/// Both models, on a rank.
fn work(parallel: &Parallel, test: bool) -> Result<()> {
    let config: EncoderConfig = parse(MINILM)?;
    let shape = if test { (2, 8, 2) } else { (16, 128, 12) };
    let vocab = config.vocab_size;
    let model = models::build::<Encoder>(&config, Weights::Random(0), &Options::new())?.model;
    let adapters = LoraConfig::new(8)
        .target_modules(["query", "value"])
        .seed(0);
    let mut model = model.to_lora(&adapters)?;
    let loss = |model: &Lora<Encoder>, ids: &Tensor| {
        let embeddings = model.embed(&Inputs::new(ids), true)?;
        Ok(Loss::over_examples(
            embeddings.sqr()?.mean_all()?,
            ids.dim(0)?,
        ))
    };
    measure("MiniLM", parallel, shape.into(), vocab, &mut model, loss)?;

    let mut config: DecoderConfig = parse(SMOLLM2)?;
    if test {
        config.vocab_size = 512;
    }
    let shape = if test { (1, 8, 2) } else { (1, 256, 8) };
    let vocab = config.vocab_size;
    let model = models::build::<Decoder>(&config, Weights::Random(0), &Options::new())?.model;
    let adapters = LoraConfig::new(8).target_modules("all-linear").seed(0);
    let mut model = model.to_lora(&adapters)?;
    let loss = |model: &Lora<Decoder>, ids: &Tensor| {
        let count = ids.dim(0)? * (ids.dim(1)? - 1);
        Ok(Loss::over_tokens(model.loss(ids, None, ids)?, count))
    };
    measure(
        "SmolLM2-135M",
        parallel,
        shape.into(),
        vocab,
        &mut model,
        loss,
    )
}

/// Trains, and prints a row of the table.
fn measure<M: LoraModule>(
    name: &str,
    parallel: &Parallel,
    shape: Shape,
    vocab: usize,
    model: &mut M,
    loss: impl FnMut(&M, &Tensor) -> Result<Loss>,
) -> Result<()> {
    // One rank of two threads does the work of two ranks.
    let threads: usize = std::env::var(IS_RANK)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1);
    let texts = shape.batch * parallel.ranks() * threads;
    let mut source = Examples::new([1].repeat(texts), &BatchOptions::new(texts), |numbers| {
        let ids = numbers.iter().flat_map(|number| {
            (0..shape.length).map(move |place| ((number * 7919 + place * 104_729) % vocab) as u32)
        });
        Ok(Tensor::from_iter(ids, &Device::Cpu)?.reshape((numbers.len(), shape.length))?)
    })?;
    let before = parallel.traffic();
    let (last, start, bytes) = (Cell::new(before), Cell::new(None), Cell::new(0));
    let options = TrainOptions::steps(shape.steps).check_gradients(false);
    let trained = Trainer::new(options.evaluate(Every::Never).save(Every::Never))
        .parallel(parallel)
        .watch(|event| {
            if let Event::Step(_) = event {
                let traffic = parallel.traffic();
                if start.get().is_none() {
                    start.set(Some(traffic.broadcast - before.broadcast));
                }
                bytes.set(traffic.summed - last.get().summed);
                last.set(traffic);
            }
            Ok(())
        })
        .run(
            model,
            &mut source,
            |model| LoraPlus::new(1e-4, 4.0).adamw(model),
            loss,
        )?;
    let numbers = model
        .trainable_vars()
        .into_iter()
        .map(|var| var.elem_count());
    let (median, largest) = sum_alone(parallel, numbers.sum())?;
    if parallel.is_first() {
        let step = trained.step.as_secs_f64();
        println!(
            "| {name} | {} | {threads} | {texts} | {step:.3} | {:.2} | {} | {median:.2} | {largest:.2} | {} |",
            parallel.ranks(),
            texts as f64 / step,
            bytes.get(),
            start.get().unwrap_or_default(),
        );
    }
    Ok(())
}

/// Milliseconds in which MPI sums so many numbers, when all ranks have come: the median of 20, and the largest.
fn sum_alone(parallel: &Parallel, numbers: usize) -> Result<(f64, f64)> {
    let world = SimpleCommunicator::world();
    let (own, mut sums) = (vec![1f32; numbers], vec![0f32; numbers]);
    let mut times = Vec::new();
    for _ in 0..20 {
        parallel.barrier()?;
        let start = Instant::now();
        if parallel.ranks() > 1 {
            world.all_reduce_into(&own[..], &mut sums[..], SystemOperation::sum());
        }
        times.push(1e3 * start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], times[times.len() - 1]))
}

impl From<(usize, usize, usize)> for Shape {
    fn from((batch, length, steps): (usize, usize, usize)) -> Self {
        Self {
            batch,
            length,
            steps,
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(failed)
}

fn failed(problem: impl ToString) -> Error {
    Error::Training(vec![problem.to_string()])
}
