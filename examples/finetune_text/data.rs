//! Texts and their classes.

use super::folders;
use anyhow::{Context, Result, bail};
use lora::data::{Classes, Labelled, read_jsonl, split};
use std::collections::HashSet;
use std::path::Path;

/// Texts of some classes.
#[derive(Clone, Debug)]
pub struct Texts {
    /// The classes.
    pub classes: Classes,
    /// The texts.
    pub items: Vec<Labelled>,
    /// What a user should know of them.
    pub notes: Vec<String>,
}

/// Reads a JSONL file, or folders.
///
/// # Errors
/// Says what is missing or is not as expected, and where there are fewer than two classes.
pub fn read(path: &Path) -> Result<Texts> {
    let (mut items, mut notes) = match path.is_dir() {
        true => folders::read(path)?,
        false => (read_lines(path)?, Vec::new()),
    };
    let name = path.display();
    let (mut seen, all) = (HashSet::new(), items.len());
    items.retain(|item| !item.text.trim().is_empty());
    let empty = all - items.len();
    items.retain(|item| seen.insert((item.text.clone(), item.text_pair.clone())));
    let copies = all - empty - items.len();
    for (count, what) in [(empty, "empty"), (copies, "the same as another")] {
        if count > 0 {
            let note = format!("{count} of {all} texts are {what}: left out");
            notes.push(note);
        }
    }
    if items.is_empty() {
        bail!("{name} holds no text");
    }
    let classes = Classes::of(items.iter().map(|item| &item.label));
    Ok(Texts {
        classes: classes.with_context(|| format!("cannot use {name}"))?,
        items,
        notes,
    })
}

fn read_lines(path: &Path) -> Result<Vec<Labelled>> {
    read_jsonl(path).context(
        "--data takes a file with a line for each text, {\"text\": \"..\", \"label\": \"..\"}, or a folder",
    )
}

impl Texts {
    /// The texts to train on, and those held out; of so many texts at most.
    ///
    /// # Errors
    /// If there are too few.
    pub fn split(
        mut self,
        held_out: f64,
        limit: Option<usize>,
        seed: u64,
    ) -> Result<(Vec<Labelled>, Vec<Labelled>)> {
        let all = self.items.len();
        if let Some(limit) = limit.filter(|&limit| limit < all) {
            self.items = split(self.items, limit as f64 / all as f64, seed)?.1;
        }
        let count = self.items.len();
        let (training, held_out) = split(self.items, held_out, seed)?;
        if training.is_empty() || held_out.is_empty() {
            bail!("{count} texts are too few to hold some out");
        }
        Ok((training, held_out))
    }
}
