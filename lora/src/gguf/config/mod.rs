//! The configuration in a GGUF file's metadata, put into the words of transformers' `config.json`.

mod ropes;

use super::families::Family;
use super::file::GgufFile;
use super::header::Field;
use crate::error::shorten;
use crate::{Error, Result};
use ropes::{DIVISORS, LONG, SHORT};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::HashSet;

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

/// What the metadata say of a model.
pub(crate) struct Config {
    /// The contents of `config.json`.
    pub(crate) json: Map<String, Value>,
    /// Settings that have no effect.
    pub(crate) without_effect: Vec<String>,
}

/// The configuration of the model in a file.
pub(crate) fn read(file: &GgufFile, family: &Family) -> Result<Config> {
    let settings = Settings {
        file,
        arch: family.arch,
        read: RefCell::default(),
        problems: RefCell::default(),
    };
    let json = settings.to_json(family)?;
    let problems = settings.problems.take();
    if !problems.is_empty() {
        return Err(Error::File {
            path: file.path().into(),
            problems,
        });
    }
    Ok(Config {
        json,
        without_effect: settings.without_effect(),
    })
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

    fn to_json(&self, family: &Family) -> Result<Map<String, Value>> {
        let mut map = Map::new();
        map.insert("architectures".into(), json!([family.class]));
        map.insert("model_type".into(), family.model_type.into());
        map.insert("torch_dtype".into(), "float32".into());
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
        // A damaged file must not make us build a model that it cannot hold.
        let layers = map.get("num_hidden_layers").and_then(Value::as_u64);
        let most = self.file.names().count() as u64;
        if let Some(layers) = layers.filter(|layers| *layers > most) {
            self.problem(format!(
                "`{}.block_count` is {layers}, more than the {most} tensors of the file",
                self.arch
            ));
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
        self.biases(&mut map);
        self.experts(&mut map);
        self.refused();
        self.ropes(&mut map)?;
        self.tokens(&mut map);
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
                map.insert("architectures".into(), json!(["MistralForCausalLM"]));
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

    /// Which layers have a bias: the tensors tell.
    fn biases(&self, map: &mut Map<String, Value>) {
        let has = |name: &str| self.file.info(&format!("blk.0.{name}.bias")).is_some();
        // Qwen2 has them without a setting.
        if has("attn_q") && self.arch != "qwen2" {
            map.insert("attention_bias".into(), true.into());
        }
        if has("ffn_down") {
            map.insert("mlp_bias".into(), true.into());
        }
    }

    /// Mixtures of experts.
    fn experts(&self, map: &mut Map<String, Value>) {
        let count = self.number("expert_count");
        let used = self.number("expert_used_count");
        let width = self.number("expert_feed_forward_length");
        let count = count.filter(|count| count.as_u64() != Some(0));
        let names = match (self.arch, &count) {
            (_, None) => return,
            ("llama", _) => {
                map.insert("architectures".into(), json!(["MixtralForCausalLM"]));
                map.insert("model_type".into(), "mixtral".into());
                ("num_local_experts", "intermediate_size")
            }
            ("qwen3moe", _) => {
                // llama.cpp always does so.
                map.insert("norm_topk_prob".into(), true.into());
                ("num_experts", "moe_intermediate_size")
            }
            _ => {
                self.problem(format!(
                    "`{}.expert_count` is set: mixtures of experts are read of the architectures llama \
                     and qwen3moe",
                    self.arch
                ));
                return;
            }
        };
        let held = self.file.info("blk.0.ffn_gate_exps.weight");
        let held = json!(held.map_or(0, |info| info.matrices));
        if let Some(count) = count.as_ref().filter(|count| **count != held) {
            self.problem(format!(
                "`{}.expert_count` is {count}, `blk.0.ffn_gate_exps.weight` holds {held}",
                self.arch
            ));
        }
        map.extend(count.map(|count| (names.0.to_string(), count)));
        map.extend(used.map(|used| ("num_experts_per_tok".to_string(), used)));
        map.extend(width.map(|width| (names.1.to_string(), width)));
    }

    /// The special tokens by number.
    fn tokens(&self, map: &mut Map<String, Value>) {
        for (key, name) in [("bos", "bos"), ("eos", "eos"), ("padding", "pad")] {
            let key = format!("tokenizer.ggml.{key}_token_id");
            let id = match self.file.fields.get(&key) {
                Some(Field::Unsigned(id)) => json!(id),
                _ => Value::Null,
            };
            map.insert(format!("{name}_token_id"), id);
        }
    }

    /// Settings that change the result and are not supported.
    fn refused(&self) {
        if self.field("attention.causal") == Some(&Field::Flag(false)) {
            self.problem(format!(
                "`{}.attention.causal` is false: only decoders are read",
                self.arch
            ));
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
