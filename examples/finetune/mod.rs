//! The main job: adapting an image classifier to new images.

mod checks;
mod font;
mod options;
mod output;
mod picture;
mod report;

pub use checks::Agreement;
pub use options::{Bias, Options};
pub use output::{Output, size_on_disk};
pub use picture::write_picture;
pub use report::Report;

use crate::checkpoint::{Checkpoint, Input};
use crate::images::{Dataset, read_folder};
use crate::training::{Recipe, Trained, accuracy, logits, predictions, train};
use anyhow::{Result, bail};
use lora::models::convnext::ConvNext;
use lora::{LoraModel, LoraModule};
use std::path::{Path, PathBuf};

/// The part of each class that is held out.
const HELD_OUT: f64 = 0.25;

/// The repository's file or folder of this name in `examples/data`.
pub fn bundled(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("data")
        .join(name);
    // As short as the working directory allows.
    let here = std::env::current_dir().unwrap_or_default();
    match dir.strip_prefix(here) {
        Ok(short) => short.into(),
        Err(_) => dir,
    }
}

/// All that the job reads, checked to fit together.
#[derive(Clone, Debug)]
pub struct Job {
    /// The base model.
    pub base: ConvNext,
    /// The images it wants; `label_names` are the classes it tells apart.
    pub input: Input,
    /// Whether its classifier is fresh, for classes that the checkpoint does not know.
    pub fresh: bool,
    /// Images to train on.
    pub training: Dataset,
    /// Images held out.
    pub held_out: Dataset,
}

impl Job {
    /// Reads the checkpoint and the images.
    ///
    /// # Errors
    /// Says what is missing, damaged or does not fit.
    pub fn read(checkpoint: &Path, data: &Path, seed: u64) -> Result<Self> {
        let checkpoint = Checkpoint::open(checkpoint)?;
        let mut input = checkpoint.input.clone();
        // A checkpoint that does not fit its description shows before the images are read.
        let known = checkpoint.model(None, seed)?;
        let images = read_folder(data, input.channels(), input.size())?;
        let names_fit = input.label_names.len() == known.config.num_classes;
        let renumbered = images.renumbered(&input.label_names).filter(|_| names_fit);
        let fresh = renumbered.is_none();
        let (base, images) = match renumbered {
            Some(images) => (known.model, images),
            None => {
                input.label_names = images.classes.clone();
                (
                    checkpoint.model(Some(images.classes.len()), seed)?.model,
                    images,
                )
            }
        };
        let (training, held_out) = images.split(HELD_OUT);
        if training.is_empty() {
            bail!("{} has too few images to hold some out", data.display());
        }
        Ok(Self {
            base,
            input,
            fresh,
            training,
            held_out,
        })
    }

    /// Logits, predictions and accuracy of a model on the held-out images.
    fn evaluate<M: candle_nn::Module>(&self, model: &M) -> Result<Evaluation> {
        let logits = logits(model, &self.held_out, &self.input)?;
        let predictions = predictions(&logits)?;
        let accuracy = accuracy(&predictions, &self.held_out.labels);
        Ok(Evaluation {
            logits,
            predictions,
            accuracy,
        })
    }
}

struct Evaluation {
    logits: candle_core::Tensor,
    predictions: Vec<u32>,
    accuracy: f64,
}

/// Does the whole job and prints what it does.
///
/// # Errors
/// One line that says what went wrong. Output of an earlier run is then as it was.
pub fn run(options: &Options) -> Result<Report> {
    options.check()?;
    let checkpoint = options.checkpoint();
    let data = options.data.clone().unwrap_or_else(|| bundled("optdigits"));
    let job = Job::read(&checkpoint, &data, options.seed)?;
    let output = Output::new(&options.output)?;

    let (classes, size) = (job.training.classes.len(), job.input.size());
    println!(
        "model   {}, {classes} classes, images of {size}x{size}",
        checkpoint.display()
    );
    let (trained_on, held) = (job.training.len(), job.held_out.len());
    println!(
        "images  {}: {trained_on} to train on, {held} held out",
        data.display()
    );
    if job.fresh {
        println!(
            "        the model does not know all of these classes: it gets a fresh classifier, \
             trained in full"
        );
    }
    let before = if job.fresh {
        None
    } else {
        Some(job.evaluate(&job.base)?)
    };

    let train_head = job.fresh || options.train_head;
    let mut model = job.base.to_lora(&options.lora(train_head))?;
    let summary = model.summary();
    if options.summary {
        println!("\n{summary}\n");
    } else {
        println!("LoRA    rank {}: {}\n", options.rank, summary.totals());
    }
    let trained: Trained = train(
        &mut model,
        &job.training,
        &job.input,
        &Recipe {
            epochs: options.epochs,
            batch: options.batch,
            lr: options.lr,
            weight_decay: 0.0,
            augment: options.augment,
            seed: options.seed,
        },
    )?;
    let after = job.evaluate(&model)?;

    let adapter = output.draft("adapter");
    model.save_adapter(&adapter)?;
    let mut reloaded = job.base.to_lora(&options.lora(train_head))?;
    reloaded.load_adapter(&adapter)?;
    reloaded.eval();
    let reloaded = Agreement::of(&after.logits, &job.evaluate(&reloaded)?.logits)?;

    model.merge()?;
    let merged = Agreement::of(&after.logits, &job.evaluate(&model)?.logits)?;
    model.unmerge()?;
    let tuned = model.to_base()?;
    let base = Agreement::of(&after.logits, &job.evaluate(&tuned)?.logits)?;
    let weights = output.draft("merged.safetensors");
    Checkpoint::write(&weights, &tuned, &job.input)?;
    let picture = output.draft("predictions.png");
    let was = before.as_ref().map(|before| before.predictions.as_slice());
    write_picture(&picture, &job.held_out, was, &after.predictions)?;

    let (adapter_bytes, checkpoint_bytes) = (size_on_disk(&adapter)?, size_on_disk(&weights)?);
    let names = [
        "adapter",
        "merged.safetensors",
        "merged.json",
        "predictions.png",
    ];
    let saved = output.publish(&names)?;
    let report = Report {
        before: before.map(|before| before.accuracy),
        after: after.accuracy,
        held_out: held,
        trainable: summary.trainable,
        parameters: summary.total,
        trained,
        peak_memory: report::peak_memory(),
        adapter_bytes,
        checkpoint_bytes,
        reloaded,
        merged,
        base,
        saved,
    };
    println!("\n{report}");
    Ok(report)
}
