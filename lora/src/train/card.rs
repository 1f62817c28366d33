//! The model card of an adapter: the `README.md` that PEFT and the hub know.

use super::{Metrics, TrainOptions, Trained};
use crate::file::stage;
use crate::{Error, Result};
use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// By this line a card is known as one of ours, which a later run may replace.
const MARK: &str = "<!-- Written by lora. Take this line away to keep your changes. -->";

/// The model card of an adapter, `README.md` in its folder, filled in: what it is for, how it was trained,
/// what it reaches. The front matter is that of PEFT's cards.
///
/// ```
/// use lora::train::{Metrics, ModelCard, TrainOptions};
///
/// let dir = tempfile::tempdir().unwrap();
/// ModelCard::new("HuggingFaceTB/SmolLM2-135M")
///     .task("text-generation")
///     .about("Answers questions about tides.")
///     .setting("rank", 8)
///     .options(&TrainOptions::epochs(3))
///     .metrics(&Metrics::from([("loss", 1.25)]))
///     .write(dir.path())?;
/// let card = std::fs::read_to_string(dir.path().join("README.md")).unwrap();
/// assert!(card.starts_with("---\nbase_model: HuggingFaceTB/SmolLM2-135M\nlibrary_name: peft\n"));
/// assert!(card.contains("| loss | 1.25 |"));
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ModelCard {
    base_model: String,
    task: Option<String>,
    tags: Vec<String>,
    about: Option<String>,
    settings: Vec<(String, String)>,
    metrics: Option<Metrics>,
}

impl ModelCard {
    /// Of an adapter for this base model: its name on the hub, or where it lies.
    pub fn new(base_model: impl Into<String>) -> Self {
        Self {
            base_model: base_model.into(),
            ..Self::default()
        }
    }

    /// What the model is used for, in the hub's words: `text-generation`, `text-classification`,
    /// `image-classification`, `sentence-similarity`.
    pub fn task(mut self, task: impl Into<String>) -> Self {
        self.task = Some(task.into());
        self
    }

    /// A tag beside PEFT's.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// What the adapter does, in a sentence or more.
    pub fn about(mut self, text: impl Into<String>) -> Self {
        self.about = Some(text.into());
        self
    }

    /// A setting: a row of the table of how the adapter was trained.
    pub fn setting(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.settings.push((name.into(), value.to_string()));
        self
    }

    /// The settings of a run.
    pub fn options(self, options: &TrainOptions) -> Self {
        let clip = options.clip.map_or("none".into(), |clip| clip.to_string());
        let course = format!("{:?}", options.course).to_lowercase();
        self.setting("length", options.length)
            .setting("batches a step", options.accumulate)
            .setting("gradients clipped to norm", clip)
            .setting("learning rate's course", course)
            .setting("share of warm-up", options.warmup)
            .setting("seed", options.seed)
    }

    /// What a run came to: its steps, and the metrics of its last evaluation.
    pub fn trained(self, trained: &Trained) -> Self {
        let mut card = self.setting("steps", trained.steps);
        if let Some(loss) = trained.losses.last() {
            card = card.setting("training loss of the last epoch", format!("{loss:.4}"));
        }
        match trained.evaluations.last() {
            Some(evaluation) => card.metrics(&evaluation.metrics),
            None => card,
        }
    }

    /// What the model reaches on held-out data.
    pub fn metrics(mut self, metrics: &Metrics) -> Self {
        self.metrics = Some(metrics.clone());
        self
    }

    /// Writes `README.md` into the folder, whole or not at all. Replaces a card that this method wrote.
    ///
    /// # Errors
    /// If another `README.md` stands there, or the file cannot be written.
    pub fn write(&self, dir: impl AsRef<Path>) -> Result<PathBuf> {
        let path = Self::place(&dir)?;
        let failed = |error: String| Error::file(&path, format!("cannot be written: {error}"));
        let file = stage(dir.as_ref(), self.text().as_bytes())
            .map_err(|error| failed(error.to_string()))?;
        file.persist(&path)
            .map_err(|error| failed(error.to_string()))?;
        Ok(path)
    }

    /// Where the card of a folder stands, if [`write`](Self::write) may put one there.
    ///
    /// # Errors
    /// If another `README.md` stands there, or it cannot be read.
    pub fn place(dir: impl AsRef<Path>) -> Result<PathBuf> {
        let path = dir.as_ref().join("README.md");
        match fs::read_to_string(&path) {
            Ok(text) if !text.contains(MARK) => Err(Error::file(
                &path,
                "is not a card that this library wrote: move it away to get one",
            )),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::file(&path, format!("cannot be read: {error}")))
            }
            _ => Ok(path),
        }
    }

    /// The card. Writing into a string cannot fail.
    fn text(&self) -> String {
        let base = yaml(&self.base_model);
        let mut text = format!("---\nbase_model: {base}\nlibrary_name: peft\n");
        if let Some(task) = &self.task {
            let _ = writeln!(text, "pipeline_tag: {}", yaml(task));
        }
        let mut tags = vec![
            format!("base_model:adapter:{}", self.base_model),
            "lora".into(),
        ];
        tags.extend(self.tags.iter().cloned());
        tags.sort();
        tags.dedup();
        text += "tags:\n";
        for tag in tags {
            let _ = writeln!(text, "- {}", yaml(&tag));
        }
        let _ = write!(
            text,
            "---\n\n{MARK}\n\n# LoRA adapter for {}\n\n",
            self.base_model
        );
        if let Some(about) = &self.about {
            let _ = write!(text, "{about}\n\n");
        }
        if !self.settings.is_empty() {
            text += "## Training procedure\n\n| setting | value |\n|---|---|\n";
            for (name, value) in &self.settings {
                let _ = writeln!(text, "| {} | {} |", cell(name), cell(value));
            }
            text.push('\n');
        }
        if let Some(metrics) = &self.metrics {
            text += "## Evaluation\n\n| metric | value |\n|---|---|\n";
            for (name, value) in metrics.iter() {
                let _ = writeln!(text, "| {} | {value} |", cell(name));
            }
            text.push('\n');
        }
        let version = env!("CARGO_PKG_VERSION");
        let _ = write!(text, "### Framework versions\n\n- lora-candle {version}\n");
        text
    }
}

/// A text as YAML: plain where it can be, in quotes elsewhere.
fn yaml(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/_-.:".contains(c);
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain)
        && !text.ends_with(':')
        && !["true", "false", "yes", "no", "on", "off", "null", "y", "n"]
            .contains(&text.to_ascii_lowercase().as_str());
    match is_plain {
        true => text.into(),
        // A JSON text is a YAML text.
        false => serde_json::Value::from(text).to_string(),
    }
}

/// A text as a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_of_ones_own_stays() {
        let dir = tempfile::tempdir().unwrap();
        let card = ModelCard::new("./a \"b\"").tag("no").setting("a|b", "c\nd");
        card.write(dir.path()).unwrap();
        let path = card.write(dir.path()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let expected = "---\nbase_model: \"./a \\\"b\\\"\"\nlibrary_name: peft\ntags:\n\
                        - \"base_model:adapter:./a \\\"b\\\"\"\n- lora\n- \"no\"\n---\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("| a\\|b | c d |"), "{text}");
        fs::write(&path, "mine").unwrap();
        let error = card.write(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("is not a card that this library wrote"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
