//! How positions become angles, in the metadata and in tables among the tensors.

use super::Settings;
use crate::error::shorten;
use crate::gguf::header::Field;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::f64::consts::PI;

pub(super) const DIVISORS: &str = "rope_freqs.weight";
pub(super) const SHORT: &str = "rope_factors_short.weight";
pub(super) const LONG: &str = "rope_factors_long.weight";

impl Settings<'_> {
    /// Sets what the rotary embeddings need.
    pub(super) fn ropes(&self, map: &mut Map<String, Value>) -> Result<()> {
        if let Some(local) = self.number("rope.freq_base_swa") {
            map.insert("rope_local_base_freq".into(), local);
        }
        let original = self.number("rope.scaling.original_context_length");
        let factor = self.number("rope.scaling.factor");
        let older = self.number("rope.scale_linear");
        let attention = self.number("rope.scaling.attn_factor");
        let kind = match self.field("rope.scaling.type") {
            Some(Field::Text(kind)) => kind.as_str(),
            None if older.is_some() => "linear",
            None => "none",
            Some(_) => "?",
        };
        let mut scaling = Map::new();
        let mut set = |key: &str, value: Option<Value>| {
            scaling.extend(value.map(|value| (key.to_string(), value)));
        };
        let pairs = |map: &Map<String, Value>| {
            let dim = map.get("head_dim").and_then(Value::as_f64).unwrap_or(0.0);
            let part = map.get("partial_rotary_factor").and_then(Value::as_f64);
            (dim * part.unwrap_or(1.0)) as usize / 2
        };
        match kind {
            _ if self.file.info(DIVISORS).is_some() => {
                // Llama 3's: llama.cpp keeps what comes of the settings.
                let divisors = self.table(DIVISORS, pairs(map))?;
                let theta = map.get("rope_theta").and_then(Value::as_f64);
                scaling = llama3(&divisors, theta.unwrap_or(1e4)).unwrap_or_else(|| {
                    let table = || Value::from(divisors.clone());
                    let scaling = json!({"rope_type": "longrope", "short_factor": table(),
                                         "long_factor": table(), "attention_factor": 1.0});
                    let length = map.get("max_position_embeddings").cloned();
                    let mut scaling: Map<String, Value> =
                        scaling.as_object().cloned().unwrap_or_default();
                    scaling.extend(length.map(|n| ("original_max_position_embeddings".into(), n)));
                    scaling
                });
            }
            _ if self.file.info(SHORT).is_some() || self.file.info(LONG).is_some() => {
                let pairs = pairs(map);
                set("rope_type", Some("longrope".into()));
                set("short_factor", Some(self.table(SHORT, pairs)?.into()));
                set("long_factor", Some(self.table(LONG, pairs)?.into()));
                set("attention_factor", attention);
                map.extend(original.map(|n| ("original_max_position_embeddings".into(), n)));
            }
            "none" => return Ok(()),
            "linear" => {
                set("rope_type", Some("linear".into()));
                set("factor", factor.or(older));
            }
            "yarn" => {
                set("rope_type", Some("yarn".into()));
                set("factor", factor);
                set("original_max_position_embeddings", original);
                set("beta_fast", self.number("rope.scaling.yarn_beta_fast"));
                set("beta_slow", self.number("rope.scaling.yarn_beta_slow"));
            }
            kind => self.problem(format!(
                "`{}.rope.scaling.type` is \"{}\": supported are none, linear, yarn and longrope",
                self.arch,
                shorten(kind)
            )),
        }
        map.insert("rope_scaling".into(), scaling.into());
        Ok(())
    }

    /// A table of divisors, one for each pair.
    fn table(&self, name: &str, pairs: usize) -> Result<Vec<f64>> {
        let failed = |problem| Error::file(self.file.path(), format!("`{name}` {problem}"));
        let info = self
            .file
            .info(name)
            .ok_or_else(|| failed("is missing".into()))?;
        if (info.rows, info.columns) != (1, pairs) {
            return Err(failed(format!(
                "is {:?}: {pairs} divisors are expected",
                [info.rows, info.columns]
            )));
        }
        let values: Vec<f32> = self.file.values(name)?.flatten_all()?.to_vec1()?;
        match values
            .iter()
            .all(|divisor| *divisor > 0.0 && divisor.is_finite())
        {
            true => Ok(values.into_iter().map(f64::from).collect()),
            false => Err(failed("holds divisors that are not above 0".into())),
        }
    }
}

/// The settings of Llama 3.1 and later from which these divisors come, if they do.
fn llama3(divisors: &[f64], theta: f64) -> Option<Map<String, Value>> {
    let (low, high, original) = (1.0, 4.0, 8192.0);
    let factor = divisors.iter().copied().fold(1.0, f64::max);
    let dim = 2.0 * divisors.len() as f64;
    let expected = |pair: usize| {
        let turns = original * theta.powf(-2.0 * pair as f64 / dim) / (2.0 * PI);
        let fast = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - fast) / factor + fast)
    };
    let mut pairs = divisors.iter().enumerate();
    let fits = pairs.all(|(pair, divisor)| (divisor / expected(pair) - 1.0).abs() < 1e-6);
    let scaling = json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low,
                         "high_freq_factor": high, "original_max_position_embeddings": 8192});
    scaling
        .as_object()
        .filter(|_| fits && factor > 1.0)
        .cloned()
}
