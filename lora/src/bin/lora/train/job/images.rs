//! A model of images learns the classes of a folder's images.

use super::super::kind::Kind;
use super::super::settings::Settings;
use super::{Job, Prepared};
use crate::model::Source;
use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::Module;
use lora::images::{Augment, Batch, Dataset as Pictures, Input, read_folder};
use lora::metrics::{F1, accuracy};
use lora::models::convnext::ConvNext;
use lora::models::vit::Vit;
use lora::models::{self, Architecture, Auto, Options, parameter_shapes};
use lora::ops::CrossEntropy;
use lora::train::{Best, Dataset, Loss, Metrics};
use lora::{Lora, LoraConfig, LoraModule};
use std::marker::PhantomData;
use std::path::Path;

/// Images with their classes, for a model of images. The metrics are `loss`, `accuracy` and `f1`.
pub struct Images<M> {
    pictures: Pictures,
    input: Input,
    /// What training sees of them, by this seed.
    augment: Augment,
    seed: u64,
    model: PhantomData<fn() -> M>,
}

/// Some images as the model wants them, and their classes.
pub struct ImageBatch {
    images: Tensor,
    labels: Tensor,
}

impl<M: LoraModule + Module> Dataset for Images<M> {
    type Model = M;
    type Batch = ImageBatch;

    fn lengths(&self) -> Vec<usize> {
        vec![1; self.pictures.len()]
    }

    fn batch(&self, numbers: &[usize]) -> lora::Result<ImageBatch> {
        self.prepared(self.pictures.batch(numbers)?)
    }

    fn training_batch(&self, numbers: &[usize], epoch: u64) -> lora::Result<ImageBatch> {
        let (augment, seed) = (&self.augment, self.seed);
        self.prepared(self.pictures.augmented(numbers, augment, seed, epoch)?)
    }

    fn loss(&self, model: &M, batch: &ImageBatch) -> lora::Result<Loss> {
        let logits = model.forward(&batch.images)?;
        let loss = CrossEntropy::new().of_logits(&logits, &batch.labels)?;
        Ok(Loss::over_examples(loss, batch.labels.elem_count()))
    }

    fn evaluate(&self, model: &M, at_once: usize) -> lora::Result<Metrics> {
        let numbers: Vec<usize> = (0..self.pictures.len()).collect();
        let mut logits = Vec::new();
        for numbers in numbers.chunks(at_once.max(1)) {
            let batch = self.batch(numbers)?;
            logits.push(
                model
                    .forward(&batch.images)?
                    .detach()
                    .to_dtype(DType::F32)?,
            );
        }
        let logits = Tensor::cat(&logits, 0)?;
        let labels = &self.pictures.labels;
        let targets = Tensor::new(labels.as_slice(), &Device::Cpu)?.to_dtype(DType::I64)?;
        let loss = CrossEntropy::new().of_logits(&logits, &targets)?;
        let found: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
        Ok(Metrics::from([
            ("loss", f64::from(loss.to_scalar::<f32>()?)),
            ("accuracy", accuracy(&found, labels)?),
            ("f1", F1::macro_mean(&found, labels)?.f1),
        ]))
    }

    fn best(&self) -> Best {
        Best::Highest("accuracy".into())
    }
}

impl<M> Images<M> {
    fn prepared(&self, batch: Batch) -> lora::Result<ImageBatch> {
        Ok(ImageBatch {
            images: self.input.normalize(&batch.images)?,
            labels: batch.labels.to_dtype(DType::I64)?,
        })
    }
}

/// The images of a run.
struct Read {
    training: Pictures,
    held_out: Pictures,
    notes: Vec<String>,
}

/// What is decided about a model, whichever it is.
struct Fitted<M: Architecture> {
    base: M,
    config: M::Config,
    /// What the model is called.
    name: String,
    input: Input,
    /// The modules that know nothing of the images yet.
    in_full: Vec<&'static str>,
    notes: Vec<&'static str>,
}

/// Reads images and model.
pub fn prepare(settings: &Settings) -> Result<Job> {
    let source = Source::find(&settings.model)?;
    let cannot = || {
        format!(
            "--data {} is a folder, of images: cannot use --model {}",
            settings.data.display(),
            source.name
        )
    };
    let input = Input::read(&source.path).with_context(cannot)?;
    let read = read(settings, input.size())?;
    match source.open(&options(settings))? {
        Auto::ConvNext(known) => {
            let classes = known.config.num_classes;
            let (read, fresh) = read.numbered(&input.label_names, classes);
            let base = match fresh {
                false => known.model,
                true => {
                    source
                        .open(&with_head::<ConvNext>(settings, &read))?
                        .into_convnext()?
                        .model
                }
            };
            let fitted = fit_convnext(base, input, &read, fresh)?;
            Ok(Job::ConvNext(prepared(settings, &source, read, fitted)?))
        }
        Auto::Vit(known) => {
            let (read, fresh) = read.numbered(&known.config.labels, known.config.labels.len());
            let heads = Vit::heads(&known.config, &Options::new().num_classes(1));
            let name = known.config.model_type.clone();
            let base = match fresh {
                false => known.model,
                true => {
                    let options = options(settings).num_classes(read.classes().len());
                    source
                        .open(&options.fresh(heads.clone()))?
                        .into_vit()?
                        .model
                }
            };
            let config = base.config().clone();
            let parameters = parameter_shapes::<Vit>(&config)?;
            let is_there = |head: &&str| parameters.keys().any(|name| name.starts_with(*head));
            let heads = heads.into_iter().filter(|head| fresh && is_there(head));
            let fitted = Fitted {
                base,
                name,
                input: if config.in_chans == 3 {
                    input.in_colour()
                } else {
                    input
                },
                config,
                in_full: heads.collect(),
                notes: fresh.then_some(FRESH).into_iter().collect(),
            };
            Ok(Job::Vit(prepared(settings, &source, read, fitted)?))
        }
        _ => bail!(
            "--data {} is a folder of images, --model {} is a model of texts",
            settings.data.display(),
            source.name
        ),
    }
}

const FRESH: &str = "the model does not know all of these classes: a fresh head is trained in full";
const WIDENED: &str = "they are in colour and the model's are grey: its first layer is widened to three channels \
                       and trained in full";

fn options(settings: &Settings) -> Options {
    Options::new().seed(settings.seed)
}

fn with_head<M: Architecture>(settings: &Settings, read: &Read) -> Options {
    let classes = read.classes().len();
    options(settings)
        .num_classes(classes)
        .fresh([M::CLASSIFIER])
}

fn fit_convnext(
    base: ConvNext,
    input: Input,
    read: &Read,
    fresh: bool,
) -> Result<Fitted<ConvNext>> {
    let mut fitted = Fitted {
        config: base.config().clone(),
        base,
        name: "convnext".into(),
        input,
        in_full: Vec::new(),
        notes: Vec::new(),
    };
    if fresh {
        fitted.in_full.push(ConvNext::CLASSIFIER);
        fitted.notes.push(FRESH);
    }
    if read.channels() > fitted.input.channels() {
        fitted.base = fitted.base.in_colour()?;
        fitted.config = fitted.base.config().clone();
        fitted.input = fitted.input.in_colour();
        fitted.in_full.push(ConvNext::FIRST_LAYER);
        fitted.notes.push(WIDENED);
    }
    Ok(fitted)
}

fn read(settings: &Settings, size: usize) -> Result<Read> {
    let of = |flag: &str, dir: &Path| {
        read_folder(dir, size).with_context(|| format!("cannot use {flag} {}", dir.display()))
    };
    let folder = of("--data", &settings.data)?;
    let mut notes = folder.notes.clone();
    let (training, held_out) = match &settings.valid {
        None => folder.split(settings.held_out.unwrap_or(0.0)),
        Some(valid) => {
            let apart = of("--valid", valid)?;
            notes.extend(apart.notes);
            let apart = apart.images.renumbered(&folder.images.classes);
            let apart = apart.with_context(|| {
                format!(
                    "--valid {} has subfolders that --data {} lacks",
                    valid.display(),
                    settings.data.display()
                )
            })?;
            (folder.images, apart)
        }
    };
    if training.is_empty() {
        bail!(
            "--data {} has too few images to hold some out",
            settings.data.display()
        );
    }
    Ok(Read {
        training,
        held_out,
        notes,
    })
}

impl Read {
    fn classes(&self) -> &[String] {
        &self.training.classes
    }

    fn channels(&self) -> usize {
        self.training.channels().max(self.held_out.channels())
    }

    /// With the model's numbers of the classes, if it knows all; and whether a fresh head is needed.
    fn numbered(self, names: &[String], classes: usize) -> (Self, bool) {
        let own = (names.len() == classes).then_some(names);
        let parts = own.and_then(|names| {
            Some((
                self.training.renumbered(names)?,
                self.held_out.renumbered(names)?,
            ))
        });
        match parts {
            Some((training, held_out)) => {
                let notes = self.notes;
                (
                    Self {
                        training,
                        held_out,
                        notes,
                    },
                    false,
                )
            }
            None => (self, true),
        }
    }
}

fn prepared<M: Architecture>(
    settings: &Settings,
    source: &Source,
    read: Read,
    fitted: Fitted<M>,
) -> Result<Prepared<Images<Lora<M>>>>
where
    Lora<M>: Module,
{
    let Fitted {
        base,
        config,
        name,
        input,
        in_full,
        notes,
    } = fitted;
    if read.channels() > input.channels() {
        bail!(
            "--data {}: its images are in colour, --model {} takes grey ones",
            settings.data.display(),
            source.name
        );
    }
    let mut lora = settings.lora()?;
    train_in_full(&mut lora, &in_full);
    models::check_rank::<M>(&config, &lora)?;
    let (size, kind) = (input.size(), Kind::Images);
    let images = kind.examples();
    let held_out = &read.held_out;
    let apart = match &settings.valid {
        Some(valid) => format!("{} to measure with of {}", held_out.len(), valid.display()),
        None => format!("{} held out", held_out.len()),
    };
    let mut facts = vec![
        format!("model   {}: {name}, images of {size}x{size}", source.name),
        format!(
            "data    {}: {} {images} to train on, {apart}, of {} classes",
            settings.data.display(),
            read.training.len(),
            read.classes().len()
        ),
    ];
    let told = read.notes.iter().map(String::as_str).chain(notes);
    facts.extend(told.map(|note| format!("        {note}")));
    facts.extend(settings.augment_fact());
    let set = |pictures: &Pictures| Images {
        pictures: pictures.clone().widened(input.channels()),
        input: input.clone(),
        augment: settings.augment(),
        seed: settings.seed,
        model: PhantomData,
    };
    Ok(Prepared {
        training: set(&read.training),
        held_out: (!held_out.is_empty()).then(|| set(held_out)),
        base,
        lora,
        classes: Some(read.classes().to_vec()),
        task: (None, "image-classification"),
        facts,
    })
}

fn train_in_full(lora: &mut LoraConfig, modules: &[&str]) {
    for module in modules {
        if !lora.modules_to_save.iter().any(|known| known == module) {
            lora.modules_to_save.push((*module).into());
        }
    }
}
