//! What the job reads: a base model and images that fit together.

use crate::agreement::Agreement;
use crate::checkpoint::Checkpoint;
use crate::images::{Dataset, HELD_OUT, Input, read_folder};
use crate::training::{accuracy, logits, predictions};
use anyhow::{Result, bail};
use candle_core::Tensor;
use candle_nn::Module;
use lora::models::Architecture;
use lora::models::convnext::ConvNext;
use std::path::Path;

/// All that the job reads, checked to fit together.
#[derive(Clone, Debug)]
pub struct Job {
    /// The base model.
    pub base: ConvNext,
    /// The images it wants; `label_names` are the classes it tells apart.
    pub input: Input,
    /// Whether its classifier is fresh, for classes that the checkpoint does not know.
    pub fresh: bool,
    /// Whether its first layer was widened, for images in colour.
    pub widened: bool,
    /// Images to train on.
    pub training: Dataset,
    /// Images held out.
    pub held_out: Dataset,
    /// What a user should know of the images.
    pub notes: Vec<String>,
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
        let folder = read_folder(data, input.size())?;
        let names_fit = input.label_names.len() == known.config.num_classes;
        let renumbered = folder.renumbered(&input.label_names).filter(|_| names_fit);
        let fresh = renumbered.is_none();
        let (mut base, folder) = match renumbered {
            Some(folder) => (known.model, folder),
            None => {
                input.label_names = folder.images.classes.clone();
                let classes = input.label_names.len();
                (checkpoint.model(Some(classes), seed)?.model, folder)
            }
        };
        let notes = folder.notes.clone();
        let (training, held_out) = folder.split(HELD_OUT);
        if training.is_empty() {
            bail!("{} has too few images to hold some out", data.display());
        }
        let widened = training.channels() > input.channels();
        if widened {
            (base, input) = (base.in_colour()?, input.in_colour());
        }
        Ok(Self {
            base,
            training: training.widened(input.channels()),
            held_out: held_out.widened(input.channels()),
            input,
            fresh,
            widened,
            notes,
        })
    }

    /// The modules that have to be trained in full, as they know nothing of the images yet.
    pub fn in_full(&self) -> impl Iterator<Item = &'static str> + use<> {
        let classifier = self.fresh.then_some(ConvNext::CLASSIFIER);
        classifier
            .into_iter()
            .chain(self.widened.then_some(ConvNext::FIRST_LAYER))
    }

    /// Logits, predictions and accuracy of a model on the held-out images. A base model goes here by
    /// `to_frozen`: candle's own grouped convolutions take many times as long.
    pub(super) fn evaluate<M: Module>(&self, model: &M) -> Result<Evaluation> {
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

/// What a model makes of the held-out images.
pub(super) struct Evaluation {
    pub(super) logits: Tensor,
    pub(super) predictions: Vec<u32>,
    pub(super) accuracy: f64,
}

impl Evaluation {
    /// How far another one agrees.
    pub(super) fn agreement(&self, other: &Self) -> Result<Agreement> {
        Agreement::of(&self.logits, &other.logits)
    }
}
