//! Texts and their classes.

use super::folders;
use anyhow::{Context, Result, bail};
use lora::data::{Classes, Labelled, read_jsonl, split};
use std::collections::{BTreeSet, HashSet};
use std::path::Path;

/// Texts of some classes.
#[derive(Clone, Debug)]
pub struct Texts {
    /// The classes' names, in order.
    pub classes: Vec<String>,
    /// The texts.
    pub items: Vec<Item>,
    /// What a user should know of them.
    pub notes: Vec<String>,
}

/// A text of a class.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Item {
    /// The text.
    pub text: String,
    /// A second one, of tasks on two texts.
    pub pair: Option<String>,
    /// The number of the class.
    pub class: u32,
}

/// Reads a JSONL file, or folders.
///
/// # Errors
/// Says what is missing or is not as expected, and where there are fewer than two classes.
pub fn read(path: &Path) -> Result<Texts> {
    let mut texts = match path.is_dir() {
        true => folders::read(path)?,
        false => read_lines(path)?,
    };
    let name = path.display();
    let (mut seen, all) = (HashSet::new(), texts.items.len());
    texts.items.retain(|item| !item.text.trim().is_empty());
    let empty = all - texts.items.len();
    texts
        .items
        .retain(|item| seen.insert((item.text.clone(), item.pair.clone())));
    let copies = all - empty - texts.items.len();
    for (count, what) in [(empty, "empty"), (copies, "the same as another")] {
        if count > 0 {
            let note = format!("{count} of {all} texts are {what}: left out");
            texts.notes.push(note);
        }
    }
    let classes: BTreeSet<u32> = texts.items.iter().map(|item| item.class).collect();
    match classes.len() {
        0 => bail!("{name} holds no text"),
        1 => bail!("all texts of {name} are of one class: at least two are needed"),
        _ => Ok(texts),
    }
}

fn read_lines(path: &Path) -> Result<Texts> {
    let records: Vec<Labelled> = read_jsonl(path).context(
        "--data takes a file with a line for each text, {\"text\": \"..\", \"label\": \"..\"}, or a folder",
    )?;
    let classes = Classes::of(records.iter().map(|record| &record.label))
        .with_context(|| format!("cannot use {}", path.display()))?;
    let item = |record: Labelled| {
        let class = classes.number(&record.label).unwrap_or(0);
        Item {
            text: record.text,
            pair: record.text_pair,
            class,
        }
    };
    Ok(Texts {
        items: records.into_iter().map(item).collect(),
        classes: classes.names().to_vec(),
        notes: Vec::new(),
    })
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
    ) -> Result<(Vec<Item>, Vec<Item>)> {
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

    /// Gives the classes the numbers that a model has for their names. False, and nothing is changed, if
    /// the model's classes are others.
    pub fn renumber(&mut self, labels: &[String]) -> bool {
        let place = |class: &String| {
            let mut labels = labels.iter();
            labels.position(|label| label.eq_ignore_ascii_case(class))
        };
        let places: Option<Vec<usize>> = self.classes.iter().map(place).collect();
        let Some(places) = places.filter(|_| labels.len() == self.classes.len()) else {
            return false;
        };
        if places.iter().collect::<HashSet<_>>().len() < labels.len() {
            return false;
        }
        for item in &mut self.items {
            item.class = places[item.class as usize] as u32;
        }
        self.classes = labels.to_vec();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_take_the_models_numbers() {
        let item = |class: u32| Item {
            text: class.to_string(),
            pair: None,
            class,
        };
        let mut texts = Texts {
            classes: vec!["negative".into(), "positive".into()],
            items: vec![item(0), item(1)],
            notes: Vec::new(),
        };
        let labels = |labels: [&str; 2]| labels.map(String::from);
        assert!(!texts.renumber(&labels(["LABEL_0", "LABEL_1"])));
        assert!(texts.renumber(&labels(["POSITIVE", "NEGATIVE"])));
        let classes: Vec<u32> = texts.items.iter().map(|item| item.class).collect();
        assert_eq!(classes, [1, 0]);
        assert_eq!(texts.classes, ["POSITIVE", "NEGATIVE"]);
    }
}
