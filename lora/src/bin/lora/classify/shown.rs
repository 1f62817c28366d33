//! Classes with their shares, for people and for scripts.

use crate::shell::common::Common;
use crate::shell::print::say;
use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

/// What a model makes of texts or images.
pub struct Found {
    /// What was classified.
    names: Vec<String>,
    classes: Vec<String>,
    /// For each the share of each class; the value itself where there is one class alone.
    shares: Vec<Vec<f64>>,
}

impl Found {
    /// Of the logits of each class.
    ///
    /// # Errors
    /// If there are not as many as classes, or one is not finite.
    pub fn new(names: Vec<String>, classes: Vec<String>, logits: Vec<Vec<f32>>) -> Result<Self> {
        let mut shares = Vec::new();
        for row in &logits {
            if row.len() != classes.len() {
                bail!("{} logits for {} classes", row.len(), classes.len());
            }
            if row.iter().any(|logit| !logit.is_finite()) {
                bail!("the logits are not finite: the weights or the adapter are damaged");
            }
            shares.push(softmax(row));
        }
        Ok(Self {
            names,
            classes,
            shares,
        })
    }

    /// The classes of one, the likeliest first.
    fn ordered(&self, index: usize) -> Vec<(&str, f64)> {
        let shares = self.shares[index].iter().copied();
        let mut ordered: Vec<(&str, f64)> = self
            .classes
            .iter()
            .map(String::as_str)
            .zip(shares)
            .collect();
        ordered.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        ordered
    }
}

/// The shares of classes. A head with one output is one for a number.
fn softmax(logits: &[f32]) -> Vec<f64> {
    if let [value] = logits {
        return vec![f64::from(*value)];
    }
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits
        .iter()
        .map(|logit| f64::from(logit - most).exp())
        .collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// Prints a line for each.
///
/// # Errors
/// As [`say`].
pub fn show(found: &Found, model: &str, top: usize, common: &Common) -> Result<()> {
    let is_number = found.classes.len() == 1;
    if common.json {
        let results = (0..found.names.len()).map(|index| result(found, index, is_number));
        let results: Vec<Value> = results.collect();
        return say(json!({"model": model, "classes": found.classes, "results": results}));
    }
    let short: Vec<String> = found.names.iter().map(|name| shorten(name)).collect();
    let width = short
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0);
    for (index, name) in short.iter().enumerate() {
        let classes = found.ordered(index).into_iter().take(top);
        let cells: Vec<String> = classes
            .map(|(class, share)| match is_number {
                true => format!("{share:.4}"),
                false => format!("{class} {:.1} %", 100.0 * share),
            })
            .collect();
        say(format_args!("{name:<width$}  {}", cells.join("   ")))?;
    }
    Ok(())
}

fn result(found: &Found, index: usize, is_number: bool) -> Value {
    let ordered = found.ordered(index);
    let name = &found.names[index];
    match ordered.as_slice() {
        [(_, value)] if is_number => json!({"input": name, "value": value}),
        all => {
            let shares: Map<String, Value> = all
                .iter()
                .map(|(class, share)| (class.to_string(), json!(share)))
                .collect();
            json!({"input": name, "class": all.first().map(|(class, _)| class), "shares": shares})
        }
    }
}

/// The beginning of a text on one line; a path is whole.
fn shorten(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(60) {
        Some((end, _)) => format!("{}..", &line[..end]),
        None => line,
    }
}
