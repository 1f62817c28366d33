//! How well the classes of images are told apart.

use super::Options;
use super::classes::of_classes;
use super::columns::Columns;
use super::score::Measured;
use crate::model::Named;
use crate::shell::print::note;
use anyhow::{Context, Result, bail};
use candle_core::DType;
use candle_nn::Module;
use lora::images::{Dataset, Input, read_folder};
use lora::{Lora, LoraModel};

/// What a model's configuration tells of its images and classes.
pub struct Told {
    /// Channels of an image.
    pub channels: usize,
    /// Classes of the head.
    pub count: usize,
    /// The classes' names, if the configuration has them.
    pub labels: Vec<String>,
}

pub fn measure<M: LoraModel>(
    options: &Options,
    named: &Named,
    base: &M,
    told: Told,
    columns: &Columns,
) -> Result<Measured>
where
    Lora<M>: Module,
{
    let mut input = Input::read(&named.source.path)
        .with_context(|| format!("cannot use --model {}", named.source.name))?;
    if told.channels > input.channels() {
        input = input.in_colour();
    }
    let cannot = || format!("cannot use --data {}", options.data.display());
    if options.limit.is_some() {
        bail!("--limit is for JSONL: of a folder of images all are measured");
    }
    let folder = read_folder(&options.data, input.size()).with_context(cannot)?;
    for line in &folder.notes {
        note(format_args!("note: {line}"))?;
    }
    // What the folder keeps apart was not learned from.
    let images = folder.held_out.unwrap_or(folder.images);
    let names = match told.labels.is_empty() {
        true => input.label_names.clone(),
        false => told.labels,
    };
    let known = named.class_names(names, told.count)?;
    let Some(images) = images.renumbered(&known) else {
        bail!(
            "{}: its subfolders are {}, the model's classes are {}",
            cannot(),
            images.classes.join(", "),
            known.join(", ")
        );
    };
    if images.channels() > input.channels() {
        bail!(
            "{}: its images are in colour, the model's are grey",
            cannot()
        );
    }
    let images = images.widened(input.channels());
    let scores = columns.each(named, base, |model| {
        let logits = logits(model, &images, &input, options.batch())?;
        of_classes(&logits, &images.labels, &known)
    })?;
    Ok(Measured {
        on: format!("{} images of {} classes", images.len(), known.len()),
        scores,
    })
}

fn logits(
    model: &impl Module,
    images: &Dataset,
    input: &Input,
    batch: usize,
) -> Result<Vec<Vec<f32>>> {
    let indices: Vec<usize> = (0..images.len()).collect();
    let mut logits = Vec::new();
    for indices in indices.chunks(batch) {
        let batch = input.normalize(&images.batch(indices)?.images)?;
        let made = model
            .forward(&batch)
            .context("the model does not fit the images")?;
        logits.extend(made.to_dtype(DType::F32)?.to_vec2::<f32>()?);
    }
    Ok(logits)
}
