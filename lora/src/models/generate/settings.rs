//! How tokens are chosen, and when to stop.

use crate::models::keys::{Keys, read_object};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

/// How tokens are chosen, and when to stop. The default takes the likeliest token each time.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// The most tokens for a prompt.
    pub max_new_tokens: usize,
    /// A sequence ends with one of these tokens, which is its last.
    pub stop_tokens: Vec<u32>,
    /// A text ends before one of these, which may lie in several tokens. Only `text::generate`, of the
    /// feature `text`, knows texts.
    pub stop_strings: Vec<String>,
    /// Divides the logits: below 1 for likely tokens, above 1 for variety. With 0 the likeliest token
    /// is taken, and nothing is drawn.
    pub temperature: f64,
    /// Draws from this many of the likeliest tokens only.
    pub top_k: Option<usize>,
    /// Draws from the likeliest tokens only that together have this probability.
    pub top_p: Option<f64>,
    /// Draws from tokens only with at least this share of the likeliest one's probability.
    pub min_p: Option<f64>,
    /// Above 1, tokens that the sequence holds become less likely: their logits are divided by this,
    /// or multiplied where they are negative.
    pub repetition_penalty: f64,
    /// The seed of what is drawn for the first prompt. The second has the seed + 1, and so on: alone
    /// with its seed, each prompt gets the tokens that it gets in a batch.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_new_tokens: 64,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl Settings {
    /// The likeliest token each time, 64 of them.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`max_new_tokens`](Self::max_new_tokens).
    pub fn max_new_tokens(mut self, count: usize) -> Self {
        self.max_new_tokens = count;
        self
    }

    /// Sets [`stop_tokens`](Self::stop_tokens).
    pub fn stop_tokens(mut self, tokens: impl IntoIterator<Item = u32>) -> Self {
        self.stop_tokens = tokens.into_iter().collect();
        self
    }

    /// Sets [`stop_strings`](Self::stop_strings).
    pub fn stop_strings<S: Into<String>>(mut self, strings: impl IntoIterator<Item = S>) -> Self {
        self.stop_strings = strings.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`temperature`](Self::temperature).
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets [`top_k`](Self::top_k).
    pub fn top_k(mut self, count: usize) -> Self {
        self.top_k = Some(count);
        self
    }

    /// Sets [`top_p`](Self::top_p).
    pub fn top_p(mut self, probability: f64) -> Self {
        self.top_p = Some(probability);
        self
    }

    /// Sets [`min_p`](Self::min_p).
    pub fn min_p(mut self, share: f64) -> Self {
        self.min_p = Some(share);
        self
    }

    /// Sets [`repetition_penalty`](Self::repetition_penalty).
    pub fn repetition_penalty(mut self, penalty: f64) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// Sets [`seed`](Self::seed).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Everything wrong with the settings.
    pub(super) fn problems(&self) -> Vec<String> {
        let within = |value: f64, low: f64, high: f64| (low..=high).contains(&value);
        let checks = [
            (
                within(self.temperature, 0.0, f64::MAX),
                format!("temperature is {}: it must be 0 or more", self.temperature),
            ),
            (
                self.top_k != Some(0),
                "top_k is 0: it must be at least 1".into(),
            ),
            (
                self.top_p.is_none_or(|p| p > 0.0 && p <= 1.0),
                format!(
                    "top_p is {:?}: it must be above 0 and at most 1",
                    self.top_p
                ),
            ),
            (
                self.min_p.is_none_or(|p| within(p, 0.0, 1.0)),
                format!("min_p is {:?}: it must be from 0 to 1", self.min_p),
            ),
            (
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
                format!(
                    "repetition_penalty is {}: it must be above 0",
                    self.repetition_penalty
                ),
            ),
        ];
        let wrong = checks.into_iter().filter(|(right, _)| !right);
        wrong.map(|(_, problem)| problem).collect()
    }
}

/// Settings of transformers that change what is generated, with the values that change nothing.
fn without_counterpart() -> [(&'static str, Value); 11] {
    [
        ("bad_words_ids", Value::Null),
        ("encoder_repetition_penalty", json!(1.0)),
        ("epsilon_cutoff", json!(0.0)),
        ("eta_cutoff", json!(0.0)),
        ("forced_bos_token_id", Value::Null),
        ("no_repeat_ngram_size", json!(0)),
        ("num_beams", json!(1)),
        ("penalty_alpha", Value::Null),
        ("sequence_bias", Value::Null),
        ("suppress_tokens", Value::Null),
        ("typical_p", json!(1.0)),
    ]
}

/// One token or text, or several.
#[derive(Deserialize)]
#[serde(untagged, expecting = "one value or a list is expected")]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> From<OneOrMore<T>> for Vec<T> {
    fn from(values: OneOrMore<T>) -> Self {
        match values {
            OneOrMore::One(value) => vec![value],
            OneOrMore::More(values) => values,
        }
    }
}

impl Settings {
    /// The settings that a model was published with: `generation_config.json` of its directory, by
    /// transformers' rules. Where `do_sample` is not on, that is the likeliest token each time. A
    /// directory without the file has the stop tokens of its `config.json`.
    ///
    /// # Errors
    /// [`Error::File`] lists settings that are out of range, and those that have no counterpart here,
    /// such as `num_beams`.
    ///
    /// ```no_run
    /// use lora::models::generate::Settings;
    ///
    /// let settings = Settings::from_directory("SmolLM2-135M")?.max_new_tokens(100);
    /// # Ok::<(), lora::Error>(())
    /// ```
    pub fn from_directory(directory: impl AsRef<Path>) -> Result<Self> {
        let directory = directory.as_ref();
        let own = directory.join("generation_config.json");
        let (path, is_own) = match own.exists() {
            true => (own, true),
            false => (directory.join("config.json"), false),
        };
        let map = read_object(&path)?;
        let keys = Keys::new(&map);
        let stop_tokens: Option<OneOrMore<u32>> = keys.find("eos_token_id");
        let mut settings = Self::new().stop_tokens(stop_tokens.map_or(Vec::new(), Vec::from));
        if is_own {
            settings.read(&map, &keys);
        }
        let mut problems = keys.into_problems();
        problems.extend(settings.problems());
        match problems.is_empty() {
            true => Ok(settings),
            false => Err(Error::File { path, problems }),
        }
    }

    /// Reads a `generation_config.json`.
    fn read(&mut self, map: &Map<String, Value>, keys: &Keys<'_>) {
        let stop_strings: Option<OneOrMore<String>> = keys.find("stop_strings");
        self.stop_strings = stop_strings.map_or(Vec::new(), Vec::from);
        self.max_new_tokens = keys.get("max_new_tokens", self.max_new_tokens);
        self.repetition_penalty = keys.get("repetition_penalty", 1.0);
        if keys.get("do_sample", false) {
            self.temperature = keys.get("temperature", 1.0);
            // Both zero and null are off, but a missing key is not.
            let top_k = keys.nullable("top_k", Some(50));
            self.top_k = top_k.filter(|&count| count > 0);
            self.top_p = keys.find("top_p").filter(|&p| p != 1.0);
            self.min_p = keys.find("min_p");
        }
        for (key, neutral) in without_counterpart() {
            let value = map.get(key).filter(|value| !value.is_null());
            let number = |value: &Value| value.as_f64();
            let differs = value.is_some_and(|value| {
                *value != neutral && (number(value).is_none() || number(value) != number(&neutral))
            });
            if differs {
                keys.refuse(key, "generation here has no such setting");
            }
        }
    }
}
