//! The pairs of a file, and those held out.

use anyhow::{Context, Result, bail};
use lora::data::{Pair, read_jsonl, split};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::path::Path;

/// More held-out pairs than these would only take time and memory: each query is compared with each document.
const MOST_HELD_OUT: usize = 2000;

/// A line of the file: a pair, or a sense of a dictionary.
struct Line(Pair);

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut map = Map::deserialize(deserializer)?;
        if map.contains_key("definition") && map.contains_key("example") {
            for (from, to) in [("example", "anchor"), ("definition", "positive")] {
                let text = map.remove(from).unwrap_or_default();
                map.insert(to.into(), text);
            }
        }
        let pair = Pair::deserialize(Value::Object(map)).map_err(D::Error::custom)?;
        Ok(Self(pair))
    }
}

/// Pairs to train on, and others to measure with.
#[derive(Clone, Debug)]
pub(super) struct Pairs {
    pub(super) training: Vec<Pair>,
    pub(super) held_out: Vec<Pair>,
    /// What a user should know of the pairs.
    pub(super) notes: Vec<String>,
}

impl Pairs {
    /// Reads the file and holds out a share.
    pub(super) fn read(path: &Path, share: f64, seed: u64) -> Result<Self> {
        let lines: Vec<Line> = read_jsonl(path)?;
        let pairs: Vec<Pair> = lines.into_iter().map(|Line(pair)| pair).collect();
        check(&pairs).with_context(|| format!("{} does not do", path.display()))?;
        let (training, held_out) = split(pairs, share, seed)?;
        if training.is_empty() || held_out.is_empty() {
            bail!("{} has too few pairs to hold some out", path.display());
        }
        let (every, count) = (held_out.len().div_ceil(MOST_HELD_OUT), held_out.len());
        let held_out: Vec<Pair> = held_out.into_iter().step_by(every).collect();
        let mut notes = Vec::new();
        if held_out.len() < count {
            notes.push(format!(
                "of {count} held-out pairs, {} are measured with",
                held_out.len()
            ));
        }
        Ok(Self {
            training,
            held_out,
            notes,
        })
    }
}

/// Refuses pairs of which some have a score and others not.
fn check(pairs: &[Pair]) -> Result<()> {
    let scored = pairs.iter().filter(|pair| pair.score.is_some()).count();
    if scored > 0 && scored < pairs.len() {
        bail!(
            "{scored} of {} pairs have a `score`: give all of them one, or none",
            pairs.len()
        );
    }
    Ok(())
}

/// Whether the pairs say how alike they are; else each pair is a match.
pub(super) fn scored(pairs: &[Pair]) -> bool {
    pairs.iter().any(|pair| pair.score.is_some())
}
