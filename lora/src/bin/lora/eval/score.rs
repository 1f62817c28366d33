//! What was measured, for people and for scripts.

use crate::shell::common::Common;
use crate::shell::print::say;
use crate::shell::table::Table;
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
    let heads = titles.iter().map(|title| format!(">{title}"));
    let heads: Vec<String> = [String::new()].into_iter().chain(heads).collect();
    let mut table = Table::new(&heads);
    let names = scores.first().into_iter().flatten();
    for (row, name) in names.map(|score| score.name.clone()).enumerate() {
        let cells = scores.iter().map(|column| column[row].shown());
        table.row([name].into_iter().chain(cells));
    }
    table.lines("").into_iter().try_for_each(say)
}
