//! The configuration in a GGUF file's metadata, put into the words of transformers' `config.json`.

use super::names::Names;
use crate::error::shorten;
use crate::gguf::header::Field;
use crate::gguf::{GgufFile, archs};
use crate::models::decoder::{Biases, DecoderConfig, RopeScaling};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::HashSet;

/// The `model_type` of each architecture that is read.
const FAMILIES: [(&str, &str); 10] = [
    ("llama", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"),
    ("phi3", "phi3"),
    ("smollm3", "smollm3"),
    ("olmo2", "olmo2"),
    ("granite", "granite"),
];

const DIVISORS: &str = "rope_freqs.weight";
const SHORT: &str = "rope_factors_short.weight";
const LONG: &str = "rope_factors_long.weight";

/// Tensors that are no weights: the divisors of angles.
pub(super) const TABLES: [&str; 3] = [DIVISORS, SHORT, LONG];

/// The settings that have the same meaning under both names.
const SAME: [(&str, &str); 12] = [
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("rope.freq_base", "rope_theta"),
    ("embedding_scale", "embedding_multiplier"),
    ("residual_scale", "residual_multiplier"),
    ("attention.scale", "attention_multiplier"),
    ("logit_scale", "logits_scaling"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];

/// Keys that say nothing about the result, or what other keys or tensors say, too.
const HARMLESS: [&str; 4] = [
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "attention.layer_norm_epsilon",
];

/// The names and the configuration of the model in a file.
pub(super) fn read(file: &GgufFile) -> Result<(Names, DecoderConfig)> {
    let failed = |problems| Error::File {
        path: file.path().into(),
        problems,
    };
    let name = file.text("general.architecture").unwrap_or_default();
    let family = FAMILIES.iter().find(|(known, _)| *known == name);
    let Some(((_, model_type), arch)) = family.zip(archs::named(name)) else {
        let known: Vec<&str> = FAMILIES.iter().map(|(known, _)| *known).collect();
        return Err(failed(vec![format!(
            "is of the architecture \"{}\": those read are {}",
            shorten(name),
            known.join(", ")
        )]));
    };
    let settings = Settings {
        file,
        arch: name,
        read: RefCell::default(),
        problems: RefCell::default(),
    };
    let map = settings.to_json(model_type)?;
    let problems = settings.problems.take();
    if !problems.is_empty() {
        return Err(failed(problems));
    }
    let mut config = DecoderConfig::parse(&map).map_err(failed)?;
    let has = |name: &str| file.info(&format!("blk.0.{name}.bias")).is_some();
    config.biases = Biases {
        qkv: has("attn_q") || has("attn_qkv"),
        output: has("attn_output"),
        mlp: has("ffn_down"),
    };
    if file.info(DIVISORS).is_some() {
        let divisors = settings.table(DIVISORS, config.ropes[0].dim / 2)?;
        // Llama 3's: llama.cpp keeps what comes of the settings.
        config.ropes[0].scaling = RopeScaling::Longrope {
            short: divisors.clone(),
            long: divisors,
            original: config.max_position_embeddings,
            attention_factor: 1.0,
        };
    }
    config.without_effect.extend(settings.without_effect());
    Ok((Names::new(arch, config.norms), config))
}

/// The metadata of a file.
struct Settings<'a> {
    file: &'a GgufFile,
    arch: &'a str,
    read: RefCell<HashSet<String>>,
    problems: RefCell<Vec<String>>,
}

impl Settings<'_> {
    fn problem(&self, problem: String) {
        self.problems.borrow_mut().push(problem);
    }

    fn field(&self, key: &str) -> Option<&Field> {
        let key = format!("{}.{key}", self.arch);
        let field = self.file.fields.get(&key);
        self.read.borrow_mut().insert(key);
        field
    }

    /// A number, as JSON has it. llama.cpp has lists where layers differ: one number must be in them.
    fn number(&self, key: &str) -> Option<Value> {
        let value = match self.field(key)? {
            Field::Unsigned(number) => Some(json!(number)),
            Field::Signed(number) => Some(json!(number)),
            Field::Float(number) => decimal(*number),
            Field::Numbers(numbers) => match numbers[..] {
                [first, ..] if numbers.iter().all(|number| *number == first) => whole(first),
                _ => {
                    self.problem(format!(
                        "`{}.{key}` differs from layer to layer, which is not supported",
                        self.arch
                    ));
                    return None;
                }
            },
            _ => None,
        };
        if value.is_none() {
            self.problem(format!("`{}.{key}` is no finite number", self.arch));
        }
        value
    }

    fn float(&self, key: &str) -> Option<f64> {
        self.number(key)?.as_f64()
    }

    fn to_json(&self, model_type: &str) -> Result<Map<String, Value>> {
        let mut map = Map::new();
        map.insert("model_type".into(), model_type.into());
        for (key, name) in SAME {
            map.extend(self.number(key).map(|value| (name.to_string(), value)));
        }
        for name in [
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        ] {
            if !map.contains_key(name) {
                let key = SAME.iter().find(|(_, known)| *known == name);
                let key = key.map_or(name, |(key, _)| key);
                self.problem(format!("`{}.{key}` is missing", self.arch));
            }
        }
        let tokens = self.file.info("token_embd.weight").map(|info| info.rows);
        match tokens {
            Some(tokens) => map.insert("vocab_size".into(), tokens.into()),
            None => {
                self.problem("`token_embd.weight` is missing".into());
                None
            }
        };
        let is_tied = self.file.info("output.weight").is_none();
        map.insert("tie_word_embeddings".into(), is_tied.into());
        self.heads(&mut map);
        self.windows(&mut map);
        self.gemma(&mut map);
        self.refused();
        self.ropes(&mut map)?;
        Ok(map)
    }

    fn heads(&self, map: &mut Map<String, Value>) {
        let queries = map.get("num_attention_heads").cloned().unwrap_or_default();
        let keys = self
            .number("attention.head_count_kv")
            .unwrap_or(queries.clone());
        map.insert("num_key_value_heads".into(), keys);
        let width = map.get("hidden_size").and_then(Value::as_u64).unwrap_or(0);
        let shared = width
            .checked_div(queries.as_u64().unwrap_or(0))
            .unwrap_or(0);
        let dim = self.number("attention.key_length");
        let dim = dim.and_then(|dim| dim.as_u64()).unwrap_or(shared);
        map.insert("head_dim".into(), dim.into());
        let values = self
            .number("attention.value_length")
            .and_then(|dim| dim.as_u64());
        if values.is_some_and(|values| values != dim) {
            self.problem(format!(
                "`{}.attention.value_length` differs from the {dim} of the keys",
                self.arch
            ));
        }
        let turned = self
            .number("rope.dimension_count")
            .and_then(|dim| dim.as_u64());
        if let Some(turned) = turned.filter(|turned| *turned != dim && dim > 0) {
            map.insert(
                "partial_rotary_factor".into(),
                json!(turned as f64 / dim as f64),
            );
        }
    }

    fn windows(&self, map: &mut Map<String, Value>) {
        // 0 is for none.
        let window = self.number("attention.sliding_window");
        let window = window.filter(|window| window.as_u64() != Some(0));
        match (self.arch, window) {
            ("llama", Some(window)) => {
                map.insert("model_type".into(), "mistral".into());
                map.insert("sliding_window".into(), window);
            }
            (_, Some(window)) => {
                map.insert("sliding_window".into(), window);
            }
            (_, None) => {}
        }
        match self.field("attention.sliding_window_pattern") {
            Some(Field::Unsigned(pattern)) => {
                map.insert("sliding_window_pattern".into(), json!(pattern));
            }
            Some(Field::Numbers(slides)) => {
                let slides = slides.iter().map(|slides| match *slides {
                    0.0 => "full_attention",
                    _ => "sliding_attention",
                });
                map.insert("layer_types".into(), slides.collect());
            }
            Some(_) => self.problem(format!(
                "`{}.attention.sliding_window_pattern` is neither a number nor a list",
                self.arch
            )),
            None => {}
        }
    }

    /// What the later Gemmas have: llama.cpp knows the scale of the attention by the number of layers.
    fn gemma(&self, map: &mut Map<String, Value>) {
        if let Some(cap) = self.number("attn_logit_softcapping") {
            map.insert("attn_logit_softcapping".into(), cap);
        }
        let largest = match self.arch {
            "gemma2" => 46,
            "gemma3" => 62,
            _ => return,
        };
        let number = |key: &str| map.get(key).and_then(Value::as_u64).unwrap_or(0);
        let scalar = match number("num_hidden_layers") == largest {
            true => number("hidden_size").checked_div(number("num_attention_heads")),
            false => Some(number("head_dim")),
        };
        map.insert("query_pre_attn_scalar".into(), json!(scalar.unwrap_or(0)));
    }

    /// Settings that change the result and are not supported.
    fn refused(&self) {
        for key in ["expert_count", "expert_used_count"] {
            if self.float(key).is_some_and(|count| count != 0.0) {
                self.problem(format!(
                    "`{}.{key}` is set: mixtures of experts are not read",
                    self.arch
                ));
            }
        }
        if self.field("attention.causal") == Some(&Field::Flag(false)) {
            self.problem(format!(
                "`{}.attention.causal` is false: only decoders are read",
                self.arch
            ));
        }
    }

    fn ropes(&self, map: &mut Map<String, Value>) -> Result<()> {
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
        match kind {
            _ if self.file.info(SHORT).is_some() || self.file.info(LONG).is_some() => {
                let dim = map.get("head_dim").and_then(Value::as_f64).unwrap_or(0.0);
                let part = map.get("partial_rotary_factor").and_then(Value::as_f64);
                let pairs = (dim * part.unwrap_or(1.0)) as usize / 2;
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

    /// The keys of the architecture that were not read.
    fn without_effect(&self) -> Vec<String> {
        let read = self.read.borrow();
        let of_arch = |key: &&String| {
            let rest = key
                .strip_prefix(self.arch)
                .and_then(|rest| rest.strip_prefix('.'));
            rest.is_some_and(|rest| !HARMLESS.contains(&rest)) && !read.contains(*key)
        };
        let unread = self.file.fields.keys().filter(of_arch);
        let note = |key: &String| format!("`{}` is no setting of this family", shorten(key));
        unread.map(note).collect()
    }
}

/// A number that was written in f32, with the digits that were meant.
fn decimal(number: f64) -> Option<Value> {
    let single = number as f32;
    let meant = match f64::from(single) == number {
        true => single.to_string().parse().ok()?,
        false => number,
    };
    whole(meant)
}

/// A whole number where it is one.
fn whole(number: f64) -> Option<Value> {
    let is_whole = number.fract() == 0.0 && (0.0..9e15).contains(&number);
    match is_whole {
        true => Some(json!(number as u64)),
        false => number.is_finite().then(|| json!(number)),
    }
}
