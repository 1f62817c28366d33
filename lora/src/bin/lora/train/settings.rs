//! The settings of a run, complete.

use super::augment::AUGMENT;
use super::kind::{Kind, MAX_LENGTH};
use crate::shell::common::threads;
use anyhow::{Context, Result};
use lora::train::{Best, Course, Every, Length, PairLoss, TrainOptions};
use lora::{Init, LoraConfig, TrainBias};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value, json};
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

/// All settings, as `train.toml` of the output has them. The flags tell what each means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub model: String,
    pub data: PathBuf,
    pub valid: Option<PathBuf>,
    pub held_out: Option<f64>,
    pub eval_limit: Option<usize>,
    pub max_length: usize,
    pub pack: Option<bool>,
    pub learn_prompts: Option<bool>,
    pub loss: Option<PairLoss>,
    #[serde(skip_serializing)]
    pub output: PathBuf,

    pub hflip: Option<f64>,
    pub vflip: Option<f64>,
    pub scale: Option<[f64; 2]>,
    pub ratio: Option<[f64; 2]>,
    pub color_jitter: Option<f64>,
    pub warp: Option<f64>,

    pub rank: usize,
    pub alpha: Option<f64>,
    pub dropout: f64,
    pub target_modules: Option<Names>,
    pub target_regex: Option<String>,
    pub exclude_modules: Option<Names>,
    pub layers_to_transform: Option<Vec<usize>>,
    pub modules_to_save: Names,
    pub bias: TrainBias,
    pub dora: bool,
    pub rslora: bool,
    pub lora_bias: bool,
    pub init: Init,
    pub quantize: Option<String>,
    pub quantize_modules: Option<Names>,
    pub recompute: bool,

    pub epochs: Option<usize>,
    pub steps: Option<usize>,
    pub batch: usize,
    pub accumulate: usize,
    pub seed: u64,
    pub threads: Option<usize>,

    pub optimizer: OptimizerName,
    pub lr: f64,
    pub schedule: Course,
    pub warmup: f64,
    pub weight_decay: f64,
    pub clip: f64,
    pub beta1: Option<f64>,
    pub beta2: Option<f64>,
    pub eps: Option<f64>,
    pub lora_plus_ratio: Option<f64>,
    pub embedding_lr: Option<f64>,
    pub riemannian_reg: Option<f64>,

    pub eval_every: Often,
    pub save_every: Often,
    pub keep: usize,
    pub best: Option<String>,
    pub patience: Option<usize>,
    pub end_with_best: bool,
    pub check_gradients: bool,
    pub tensorboard: bool,
}

/// Which optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    Adamw,
    LoraPlus,
    LoraFa,
    Riemannian,
}

impl Display for OptimizerName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adamw => "adamw",
            Self::LoraPlus => "lora_plus",
            Self::LoraFa => "lora_fa",
            Self::Riemannian => "riemannian",
        })
    }
}

/// Names: a list, or a text with commas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Names(pub Vec<String>);

/// When something is done: a number of steps, `epoch` or `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Often(pub Every);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a list of names is expected, or names with commas"
        )]
        enum Given {
            One(String),
            Many(Vec<String>),
        }
        let names = match Given::deserialize(from)? {
            Given::One(text) => text
                .split(',')
                .map(|name| name.trim().to_string())
                .collect(),
            Given::Many(names) => names,
        };
        Ok(Self(names))
    }
}

impl<'de> Deserialize<'de> for Often {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(from)?;
        let every = match &value {
            Value::String(text) if text == "epoch" => Some(Every::Epoch),
            Value::String(text) if text == "never" => Some(Every::Never),
            Value::String(text) => text.parse().ok().map(Every::Steps),
            other => other.as_u64().map(|steps| Every::Steps(steps as usize)),
        };
        let every = every.filter(|every| *every != Every::Steps(0));
        every.map(Self).ok_or_else(|| {
            de::Error::custom(format!(
                "{value} is no number of steps from 1 on, nor `epoch` or `never`"
            ))
        })
    }
}

impl Serialize for Often {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Every::Epoch => to.serialize_str("epoch"),
            Every::Steps(steps) => to.serialize_u64(steps as u64),
            Every::Never => to.serialize_str("never"),
        }
    }
}

impl Settings {
    /// Settings of some run, to read one of them among.
    pub fn any() -> Map<String, Value> {
        let mut all = Kind::Language.defaults();
        for key in ["model", "data"] {
            all.insert(key.into(), "".into());
        }
        all
    }

    /// Fills in what depends on other settings. Returns the problems; `name` tells what the user calls a
    /// setting.
    pub fn complete(&mut self, kind: Kind, name: &dyn Fn(&str) -> String) -> Vec<String> {
        let mut problems = self.out_of_range(name);
        self.alpha.get_or_insert(2.0 * self.rank as f64);
        for key in self.without_effect(kind) {
            let of = match key {
                "pack" | "learn_prompts" => "is for language models alone",
                "loss" => "is for pairs of texts alone",
                "max_length" | "eval_limit" => "is for texts alone",
                "ratio" if kind == Kind::Images => "needs `scale`",
                key if AUGMENT.contains(&key) => "is for images alone",
                "quantize_modules" => "needs `quantize`",
                _ => "has no effect with this optimiser",
            };
            problems.push(format!("{} {of}: leave it out", name(key)));
        }
        if self.held_out == Some(0.0) {
            for (key, given) in [
                ("patience", self.patience.is_some()),
                ("end_with_best", self.end_with_best),
                ("best", self.best.is_some()),
            ] {
                if given {
                    problems.push(format!(
                        "{} needs data to measure with: --valid or --held-out",
                        name(key)
                    ));
                }
            }
        }
        self.fill_optimizer();
        problems
    }

    /// The settings that are given and that nothing reads.
    fn without_effect(&self, kind: Kind) -> Vec<&'static str> {
        use OptimizerName::{LoraFa, LoraPlus, Riemannian};
        let is = |one: OptimizerName| self.optimizer == one;
        let language = kind == Kind::Language;
        let given = [
            ("pack", self.pack.is_some() && !language),
            ("learn_prompts", self.learn_prompts.is_some() && !language),
            ("loss", self.loss.is_some() && kind != Kind::Pairs),
            (
                "max_length",
                self.max_length != MAX_LENGTH && kind == Kind::Images,
            ),
            (
                "eval_limit",
                self.eval_limit.is_some() && kind == Kind::Images,
            ),
            (
                "quantize_modules",
                self.quantize_modules.is_some() && self.quantize.is_none(),
            ),
            ("beta1", self.beta1.is_some() && is(LoraFa)),
            ("beta2", self.beta2.is_some() && is(LoraFa)),
            ("eps", self.eps.is_some() && is(LoraFa)),
            (
                "lora_plus_ratio",
                self.lora_plus_ratio.is_some() && !is(LoraPlus),
            ),
            ("embedding_lr", self.embedding_lr.is_some() && !is(LoraPlus)),
            (
                "riemannian_reg",
                self.riemannian_reg.is_some() && !is(Riemannian),
            ),
        ];
        let given = given.into_iter().chain(self.augment_without_effect(kind));
        given
            .filter(|(_, given)| *given)
            .map(|(key, _)| key)
            .collect()
    }

    fn fill_optimizer(&mut self) {
        use OptimizerName::{LoraFa, LoraPlus, Riemannian};
        if self.optimizer != LoraFa {
            self.beta1.get_or_insert(0.9);
            self.beta2.get_or_insert(0.999);
            self.eps.get_or_insert(1e-8);
        }
        if self.optimizer == LoraPlus {
            self.lora_plus_ratio.get_or_insert(16.0);
            self.embedding_lr.get_or_insert(1e-6);
        }
        if self.optimizer == Riemannian {
            self.riemannian_reg.get_or_insert(1e-2);
        }
    }

    fn out_of_range(&self, name: &dyn Fn(&str) -> String) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |key: &str, value: f64, ok: bool, must: &str| {
            if !ok {
                problems.push(format!("{} is {value}: it must be {must}", name(key)));
            }
        };
        let counts = [
            ("rank", Some(self.rank), 1),
            ("max_length", Some(self.max_length), 2),
            ("eval_limit", self.eval_limit, 1),
            ("epochs", self.epochs, 1),
            ("steps", self.steps, 1),
            ("batch", Some(self.batch), 1),
            ("accumulate", Some(self.accumulate), 1),
            ("keep", Some(self.keep), 1),
            ("patience", self.patience, 1),
        ];
        for (key, count, least) in counts {
            if let Some(count) = count {
                check(
                    key,
                    count as f64,
                    count >= least,
                    &format!("at least {least}"),
                );
            }
        }
        let shares = [
            ("dropout", Some(self.dropout)),
            ("warmup", Some(self.warmup)),
            ("held_out", self.held_out),
            ("beta1", self.beta1),
            ("beta2", self.beta2),
        ];
        for (key, share) in shares {
            if let Some(share) = share {
                check(key, share, (0.0..1.0).contains(&share), "from 0 to below 1");
            }
        }
        let numbers = [
            ("alpha", self.alpha, true),
            ("lr", Some(self.lr), true),
            ("weight_decay", Some(self.weight_decay), false),
            ("clip", Some(self.clip), false),
            ("eps", self.eps, false),
            ("lora_plus_ratio", self.lora_plus_ratio, true),
            ("embedding_lr", self.embedding_lr, false),
            ("riemannian_reg", self.riemannian_reg, false),
        ];
        for (key, number, above) in numbers {
            if let Some(number) = number {
                let ok = number.is_finite() && (number > 0.0 || !above && number == 0.0);
                check(key, number, ok, if above { "above 0" } else { "0 or more" });
            }
        }
        let augment = self.augment().problems().into_iter();
        problems.extend(augment.map(|(key, problem)| format!("{} {problem}", name(key))));
        if let Some(number) = self.threads
            && let Err(must) = threads(&number.to_string())
        {
            problems.push(format!("{} is {number}: {must}", name("threads")));
        }
        problems
    }

    /// What is adapted and what is trained.
    ///
    /// # Errors
    /// If a name of a quantisation is none.
    pub fn lora(&self) -> Result<LoraConfig> {
        let mut settings = json!({
            "lora_rank": self.rank, "lora_dropout": self.dropout, "lora_train_bias": self.bias,
            "lora_use_dora": self.dora, "lora_use_rslora": self.rslora, "lora_bias": self.lora_bias,
            "lora_init": self.init, "lora_seed": self.seed, "lora_modules_to_save": self.modules_to_save,
        });
        let optional = [
            ("lora_alpha", self.alpha.map(Value::from)),
            ("lora_quantize", self.quantize.as_deref().map(Value::from)),
            (
                "lora_quantize_modules",
                self.quantize_modules.as_ref().map(|names| json!(names)),
            ),
            (
                "lora_exclude_modules",
                self.exclude_modules.as_ref().map(|names| json!(names)),
            ),
            (
                "lora_layers_to_transform",
                self.layers_to_transform
                    .as_ref()
                    .map(|numbers| json!(numbers)),
            ),
            ("lora_recompute", self.recompute.then(|| ".*".into())),
            (
                "lora_target_modules",
                match (&self.target_regex, &self.target_modules) {
                    (Some(regex), _) => Some(regex.as_str().into()),
                    // A word of PEFT's, not a name.
                    (_, Some(Names(names))) => Some(match names.as_slice() {
                        [word] if word.eq_ignore_ascii_case("all-linear") => word.as_str().into(),
                        names => names.into(),
                    }),
                    _ => None,
                },
            ),
        ];
        for (key, value) in optional {
            if let Some(value) = value {
                settings[key] = value;
            }
        }
        serde_json::from_value(settings).context("--quantize")
    }

    /// How to train; `best` ranks evaluations where the settings name no metric.
    pub fn options(&self, best: Best) -> TrainOptions {
        let mut options = match (self.steps, self.epochs) {
            (Some(steps), _) => TrainOptions::steps(steps),
            (None, epochs) => TrainOptions::epochs(epochs.unwrap_or(1)),
        };
        options.accumulate = self.accumulate;
        options.clip = (self.clip > 0.0).then_some(self.clip);
        options.course = self.schedule;
        options.warmup = self.warmup;
        options.seed = self.seed;
        options.check_gradients = self.check_gradients;
        options.evaluate = self.eval_every.0;
        options.save = self.save_every.0;
        options.keep = self.keep;
        options.patience = self.patience;
        options.end_with_best = self.end_with_best;
        options.best = match &self.best {
            Some(metric) if ["loss", "perplexity"].contains(&metric.as_str()) => {
                Best::Lowest(metric.clone())
            }
            Some(metric) => Best::Highest(metric.clone()),
            None => best,
        };
        options
    }

    /// How long the run is.
    pub fn length(&self) -> Length {
        self.options(Best::Lowest("loss".into())).length
    }

    /// The settings as a file that [`Layers::file`](super::layers::Layers::file) reads.
    ///
    /// # Errors
    /// If a path is no text.
    pub fn to_toml(&self) -> Result<String> {
        let Value::Object(mut all) = serde_json::to_value(self)? else {
            return Ok(String::new());
        };
        all.retain(|_, value| !value.is_null());
        Ok(toml::to_string(&all)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::flags::Flags;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn flags_and_settings_have_the_same_names() {
        let settings: Settings = serde_json::from_value(Settings::any().into()).unwrap();
        let Value::Object(keys) = serde_json::to_value(&settings).unwrap() else {
            panic!("no object");
        };
        let mut keys: BTreeSet<String> = keys.into_iter().map(|(key, _)| key).collect();
        keys.insert("output".into());
        assert_eq!(keys, Flags::names().into_iter().collect());
    }
}
