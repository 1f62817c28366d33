//! The classes of images.

use super::Options;
use super::shown::Found;
use crate::model::Named;
use crate::shell::print::note;
use crate::texts::Text;
use anyhow::{Context, Result, bail};
use candle_core::DType;
use candle_nn::Module;
use lora::images::{Dataset, Image, Input};
use std::path::Path;

/// What a model makes of image files.
///
/// # Errors
/// If the model's files do not say what images it wants, or an image cannot be read.
pub fn classify(
    options: &Options,
    named: &Named,
    model: &impl Module,
    channels: usize,
    labels: Vec<String>,
    files: &[Text],
) -> Result<Found> {
    let mut input = Input::read(&named.source.path)
        .with_context(|| format!("cannot use --model {}", named.source.name))?;
    if channels > input.channels() {
        input = input.in_colour();
    }
    let mut images = Dataset::new(vec![String::new()], input.size()).widened(input.channels());
    let mut problems = Vec::new();
    for file in files {
        match Image::open(&file.text) {
            Ok(image) => {
                if image.channels > input.channels() {
                    note(format_args!(
                        "note: {} is in colour, the model's images are grey: its brightness is read",
                        file.text
                    ))?;
                }
                images.push(0, &image.with_channels(input.channels()).fit(input.size()));
            }
            Err(_) if Path::new(&file.text).is_dir() => problems.push(format!(
                "{dir} is a folder: name its images, as in {dir}/*",
                dir = file.text.trim_end_matches('/')
            )),
            Err(error) => problems.push(error.to_string()),
        }
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    let indices: Vec<usize> = (0..images.len()).collect();
    let mut logits: Vec<Vec<f32>> = Vec::new();
    for indices in indices.chunks(usize::from(options.batch)) {
        let batch = input.normalize(&images.batch(indices)?.images)?;
        let made = model
            .forward(&batch)
            .context("the model does not fit the images")?;
        logits.extend(made.to_dtype(DType::F32)?.to_vec2::<f32>()?);
    }
    let known = if labels.is_empty() {
        input.label_names
    } else {
        labels
    };
    let count = logits.first().map_or(0, Vec::len);
    let classes = named.class_names(known, count)?;
    let names = files.iter().map(|file| file.text.clone()).collect();
    Found::new(names, classes, logits).context("cannot use the model's logits")
}
