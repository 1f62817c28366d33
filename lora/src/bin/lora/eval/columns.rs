//! What is measured side by side: the base, adapters, merged adapters.

use super::score::Score;
use crate::model::{Named, load};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use lora::{Lora, LoraModel, LoraModule};

/// A kind of column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// The model without adapters
    Base,
    /// The model with its adapters: each, and all together
    Adapter,
    /// The adapters merged into the model's weights
    Merged,
}

/// The columns, from the left.
pub struct Columns {
    columns: Vec<Column>,
}

struct Column {
    title: String,
    which: Which,
    /// The adapters that act.
    adapters: Vec<String>,
}

impl Columns {
    /// Those that are asked for; without any, all there are.
    ///
    /// # Errors
    /// If one needs an adapter and there is none.
    pub fn of(named: &Named, asked: &[Which]) -> Result<Self> {
        let names: Vec<String> = named.adapters.iter().map(|one| one.name.clone()).collect();
        let column = |title: &str, which, adapters: &[String]| Column {
            title: title.into(),
            which,
            adapters: adapters.to_vec(),
        };
        let mut columns = vec![column("base", Which::Base, &[])];
        if let [only] = names.as_slice() {
            let title = if only == lora::DEFAULT_ADAPTER {
                "adapter"
            } else {
                only
            };
            columns.push(column(title, Which::Adapter, &names));
        } else if !names.is_empty() {
            let each = names
                .iter()
                .map(|name| column(name, Which::Adapter, std::slice::from_ref(name)));
            columns.extend(each);
            columns.push(column("together", Which::Adapter, &names));
        }
        if !names.is_empty() {
            columns.push(column("merged", Which::Merged, &names));
        }
        if names.is_empty() && asked.iter().any(|which| *which != Which::Base) {
            bail!("--which asks for an adapter, and there is none: say --adapter DIR");
        }
        columns.retain(|column| asked.is_empty() || asked.contains(&column.which));
        Ok(Self { columns })
    }

    /// The titles.
    pub fn titles(&self) -> Vec<&str> {
        self.columns
            .iter()
            .map(|column| column.title.as_str())
            .collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Leaves the base out, and says whether it was there.
    pub fn leave_out_base(&mut self) -> bool {
        let before = self.columns.len();
        self.columns.retain(|column| column.which != Which::Base);
        self.columns.len() < before
    }

    /// Measures each.
    ///
    /// # Errors
    /// If an adapter does not fit the base, and those of `measure`.
    pub fn each<M: LoraModel>(
        &self,
        named: &Named,
        base: &M,
        mut measure: impl FnMut(&Lora<M>) -> Result<Vec<Score>>,
    ) -> Result<Vec<Vec<Score>>> {
        let mut tuned: Option<Lora<M>> = None;
        let mut scores = Vec::new();
        for column in &self.columns {
            let cannot = || format!("cannot measure {}", column.title);
            if column.which == Which::Base {
                scores.push(measure(&load(base, &[])?).with_context(cannot)?);
                continue;
            }
            let mut model = match tuned.take() {
                Some(model) => model,
                None => load(base, &named.adapters)?,
            };
            let names: Vec<&str> = column.adapters.iter().map(String::as_str).collect();
            if model.active_adapters() != names {
                model.set_active(&names)?;
                model.eval();
            }
            if column.which == Which::Merged {
                model.merge().with_context(cannot)?;
            }
            scores.push(measure(&model).with_context(cannot)?);
            // What was merged is the last.
            tuned = (column.which != Which::Merged).then_some(model);
        }
        Ok(scores)
    }
}
