//! What was measured, for people and for scripts.

use crate::shell::common::Common;
use crate::shell::print::say;
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::path::Path;

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: f64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Number,
    Share,
}

impl Score {
    /// A number.
    pub fn number(name: impl Into<String>, value: f64) -> Self {
        Self {
            name: name.into(),
            value,
            kind: Kind::Number,
        }
    }

    /// A share, shown in percent.
    pub fn share(name: impl Into<String>, value: f64) -> Self {
        Self {
            name: name.into(),
            value,
            kind: Kind::Share,
        }
    }

    fn shown(&self) -> String {
        match self.kind {
            Kind::Share => format!("{:.1} %", 100.0 * self.value),
            Kind::Number => format!("{:.4}", self.value),
        }
    }
}

/// What was measured.
pub struct Measured {
    /// On what, for example `512 texts of 2 classes`.
    pub on: String,
    /// The figures of each column.
    pub scores: Vec<Vec<Score>>,
}

/// Prints a table, or JSON: the figures by column and name.
///
/// # Errors
/// As [`say`].
pub fn show(
    (model, data): (&str, &Path),
    titles: &[&str],
    measured: &Measured,
    common: &Common,
) -> Result<()> {
    let Measured { on, scores } = measured;
    if common.json {
        let columns = titles.iter().zip(scores).map(|(title, scores)| {
            let figures = scores
                .iter()
                .map(|score| (score.name.clone(), json!(score.value)));
            (title.to_string(), Value::Object(figures.collect()))
        });
        let results: Map<String, Value> = columns.collect();
        return say(json!({"model": model, "data": data, "on": on, "results": results}));
    }
    say(format_args!("{model} on {}: {on}\n", data.display()))?;
    let names: Vec<&str> = scores.first().map_or_else(Vec::new, |scores| {
        scores.iter().map(|score| score.name.as_str()).collect()
    });
    let first = names
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0);
    let cells: Vec<Vec<String>> = scores
        .iter()
        .map(|column| column.iter().map(Score::shown).collect())
        .collect();
    let widths: Vec<usize> = titles
        .iter()
        .zip(&cells)
        .map(|(title, cells)| {
            let cells = cells.iter().map(String::len);
            cells.chain([title.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let line = |name: &str, cells: &mut dyn Iterator<Item = &str>| {
        let mut line = format!("{name:<first$}");
        for (cell, width) in cells.zip(&widths) {
            line.push_str(&format!("  {cell:>width$}"));
        }
        line
    };
    say(line("", &mut titles.iter().copied()))?;
    for (row, name) in names.iter().enumerate() {
        let mut row = cells.iter().map(|column| column[row].as_str());
        say(line(name, &mut row))?;
    }
    Ok(())
}
