//! How well classes are told apart.

use super::Options;
use super::columns::Columns;
use super::score::{Measured, Score};
use crate::model::Named;
use crate::texts::{Batched, Text, line};
use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use lora::data::{Label, Labelled};
use lora::metrics::{F1, accuracy, pearson, spearman};
use lora::models::Created;
use lora::models::encoder::Encoder;
use lora::ops::CrossEntropy;
use std::path::Path;

/// More classes than these get no line each.
const MOST_LINES: usize = 20;

pub fn measure(
    options: &Options,
    named: &Named,
    created: &Created<Encoder>,
    records: &[Labelled],
    columns: &Columns,
) -> Result<Measured> {
    let texts: Vec<Text> = records
        .iter()
        .map(|record| Text {
            text: record.text.clone(),
            pair: record.text_pair.clone(),
        })
        .collect();
    let config = &created.config;
    let tokenizer = named.source.tokenizer()?;
    let batched = Batched::new(
        &texts,
        tokenizer,
        config,
        options.max_length,
        options.batch(),
    )?;
    let rows = |model: &lora::Lora<Encoder>| batched.rows(|inputs| model.forward(inputs, false));
    let cannot = || format!("cannot use --data {}", options.data.display());
    if let [_] = config.labels.as_slice() {
        let labels = numbers(&options.data, records).with_context(cannot)?;
        let scores = columns.each(named, &created.model, |model| {
            of_numbers(&rows(model)?.concat(), &labels)
        })?;
        let on = format!("{} texts with numbers", texts.len());
        return Ok(Measured { on, scores });
    }
    let classes = named.class_names(config.labels.clone(), config.labels.len())?;
    let labels = class_numbers(&options.data, records, &classes).with_context(cannot)?;
    let scores = columns.each(named, &created.model, |model| {
        of_classes(&rows(model)?, &labels, &classes)
    })?;
    Ok(Measured {
        on: format!("{} texts of {} classes", texts.len(), classes.len()),
        scores,
    })
}

/// Loss, accuracy and F1 of logits.
pub fn of_classes(logits: &[Vec<f32>], labels: &[u32], classes: &[String]) -> Result<Vec<Score>> {
    let device = &Device::Cpu;
    let all = Tensor::new(logits.to_vec(), device)?;
    let targets: Vec<i64> = labels.iter().map(|&label| label.into()).collect();
    let loss = CrossEntropy::new().of_logits(&all, &Tensor::new(targets, device)?)?;
    let loss = f64::from(loss.to_scalar::<f32>()?);
    if !loss.is_finite() {
        bail!("the logits are not finite: the weights or the adapter are damaged");
    }
    let found: Vec<u32> = all.argmax(1)?.to_vec1()?;
    let mut scores = vec![
        Score::number("loss", loss),
        Score::share("accuracy", accuracy(&found, labels)?),
        Score::share("F1", F1::macro_mean(&found, labels)?.f1),
    ];
    for (number, class) in (0..).zip(classes).take(MOST_LINES) {
        let F1 { f1, .. } = F1::of(&found, labels, &number)?;
        scores.push(Score::share(format!("F1 {class}"), f1));
    }
    Ok(scores)
}

fn of_numbers(found: &[f32], labels: &[f64]) -> Result<Vec<Score>> {
    let found: Vec<f64> = found.iter().map(|&value| value.into()).collect();
    let squares = found.iter().zip(labels).map(|(a, b)| (a - b).powi(2));
    Ok(vec![
        Score::number(
            "mean squared error",
            squares.sum::<f64>() / labels.len() as f64,
        ),
        Score::number("Pearson", pearson(&found, labels)?),
        Score::number("Spearman", spearman(&found, labels)?),
    ])
}

/// The labels as numbers, of a head with one output.
fn numbers(path: &Path, records: &[Labelled]) -> Result<Vec<f64>> {
    let of = |(index, record): (usize, &Labelled)| match &record.label {
        Label::Class(value) => Ok(f64::from(*value)),
        Label::Number(value) => Ok(*value),
        Label::Name(name) => {
            let line = line(path, index);
            bail!("{line}: the label is {name:?}, the model's head gives a number")
        }
    };
    records.iter().enumerate().map(of).collect()
}

/// The number of each label's class, whatever the case of its name.
fn class_numbers(path: &Path, records: &[Labelled], classes: &[String]) -> Result<Vec<u32>> {
    let of = |(index, labelled): (usize, &Labelled)| {
        let name = match &labelled.label {
            Label::Name(name) => name.clone(),
            number => number.to_string(),
        };
        let called =
            |same: fn(&str, &str) -> bool| classes.iter().position(|class| same(class, &name));
        let place = called(|a, b| a == b).or_else(|| called(str::eq_ignore_ascii_case));
        let place = match (place, &labelled.label) {
            (None, Label::Class(number)) => Some(*number as usize).filter(|&n| n < classes.len()),
            (place, _) => place,
        };
        let place = place.and_then(|place| u32::try_from(place).ok());
        place.with_context(|| {
            let (line, classes) = (line(path, index), classes.join(", "));
            format!("{line}: the label is {name}, the model's classes are {classes}")
        })
    };
    records.iter().enumerate().map(of).collect()
}
