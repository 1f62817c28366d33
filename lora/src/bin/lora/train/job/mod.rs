//! The jobs: what a model learns, from the files to the data of a run.

mod classes;
mod examples;
mod images;
mod language;
mod pairs;

use super::kind::Kind;
use super::settings::Settings;
use super::tune::Run;
use crate::model::Source;
use anyhow::Result;
use images::Images;
use lora::models::convnext::LoraConvNext;
use lora::models::vit::LoraVit;
use lora::peft::TaskType;
use lora::train::{Dataset, Language, PairLoss, TextClasses, TextPairs};
use lora::{LoraConfig, LoraModule};

/// A job that is ready to run.
pub enum Job {
    /// A language model.
    Language(Prepared<Language>),
    /// An encoder that tells texts apart.
    Classes(Prepared<TextClasses>),
    /// An encoder that makes sentence embeddings.
    Pairs(Prepared<TextPairs>),
    /// A ConvNeXt.
    ConvNext(Prepared<Images<LoraConvNext>>),
    /// A vision transformer.
    Vit(Prepared<Images<LoraVit>>),
}

/// What a run needs of a job.
pub struct Prepared<D: Dataset> {
    /// The base model.
    pub base: <D::Model as LoraModule>::Base,
    /// What is adapted and what is trained.
    pub lora: LoraConfig,
    /// What the model learns.
    pub training: D,
    /// What it is measured with.
    pub held_out: Option<D>,
    /// The classes, by number, if there are some.
    pub classes: Option<Vec<String>>,
    /// What PEFT calls the task, if it has a name for it, and what the hub does.
    pub task: (Option<TaskType>, &'static str),
    /// Lines about the model and the data.
    pub facts: Vec<String>,
}

impl Job {
    /// Reads data and model.
    ///
    /// # Errors
    /// Names the flag and the file that do not do, and what does.
    pub fn prepare(kind: Kind, settings: &Settings) -> Result<Self> {
        // Data first: mistakes are likelier there, and a model takes long to read.
        Ok(match kind {
            Kind::Language => Self::Language(language::prepare(settings)?),
            Kind::Classes => Self::Classes(classes::prepare(settings)?),
            Kind::Pairs => Self::Pairs(pairs::prepare(settings)?),
            Kind::Images => images::prepare(settings)?,
        })
    }

    /// Trains, or tells what training would take.
    ///
    /// # Errors
    /// Says what went wrong, or that the run was stopped.
    pub fn run(self, run: &Run<'_>) -> Result<()> {
        match self {
            Self::Language(prepared) => run.tune(prepared),
            Self::Classes(prepared) => run.tune(prepared),
            Self::Pairs(mut prepared) => {
                let by_itself = matches!(
                    run.settings.loss,
                    Some(PairLoss::Cosine | PairLoss::Triplet)
                );
                if run.parallel.ranks() > 1 && !by_itself {
                    let fact = "        the loss compares a pair with others of its rank's share alone: with more \
                                ranks it is an easier one, unless --batch grows with them";
                    prepared.facts.push(fact.into());
                }
                run.tune(prepared)
            }
            Self::ConvNext(prepared) => run.tune(prepared),
            Self::Vit(prepared) => run.tune(prepared),
        }
    }
}

/// What to say of a model.
fn model_fact(source: &Source, model_type: &str, layers: usize, width: usize) -> String {
    format!(
        "model   {}: {model_type}, {layers} layers of width {width}",
        source.name
    )
}
