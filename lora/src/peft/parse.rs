//! Reading `adapter_config.json`: PEFT's types and defaults, and a word on everything else.

use super::{AdapterConfig, TaskType};
use crate::{Init, Targets, TrainBias};
use serde_json::{Map, Value};

/// Keys that PEFT writes and that say nothing about the weights.
const IGNORED: [&str; 7] = [
    "auto_mapping",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// Keys of features that are not supported, with what they are.
const UNSUPPORTED: [(&str, &str); 20] = [
    ("alora_invocation_tokens", "activated LoRA"),
    ("arrow_config", "Arrow routing"),
    ("corda_config", "CorDA"),
    ("ensure_weight_tying", "tied adapters"),
    ("eva_config", "EVA"),
    ("kasa_config", "KaSA"),
    ("layer_replication", "replicated layers"),
    ("layers_pattern", "a choice of layers by number"),
    ("layers_to_transform", "a choice of layers by number"),
    ("loftq_config", "LoftQ"),
    ("lora_bias", "a bias on B"),
    ("lora_ga_config", "LoRA-GA"),
    ("megatron_config", "Megatron layers"),
    ("monteclora_config", "MonteCLoRA"),
    ("target_parameters", "adapters on parameters"),
    ("trainable_token_indices", "trained tokens"),
    ("use_bdlora", "BD-LoRA"),
    ("use_dora", "DoRA"),
    ("use_qalora", "QALoRA"),
    ("velora_config", "VeLoRA"),
];

pub(super) fn parse(json: &[u8]) -> Result<AdapterConfig, Vec<String>> {
    let map = match serde_json::from_slice(json) {
        Ok(Value::Object(map)) => map,
        Ok(other) => return Err(vec![format!("is {}, not an object", show(&other))]),
        Err(error) => return Err(vec![format!("is not valid JSON: {error}")]),
    };
    let mut fields = Fields {
        map,
        problems: Vec::new(),
    };
    match fields.map.shift_remove("peft_type") {
        Some(Value::String(name)) if name == "LORA" => {}
        Some(other) => fields.wrong("peft_type", &other, "\"LORA\""),
        None => fields
            .problems
            .push("`peft_type` is missing: is it PEFT's file?".into()),
    }

    let mut config = AdapterConfig::new();
    fields.read("r", &mut config.r, "a whole number of at least 1", rank);
    fields.read(
        "lora_alpha",
        &mut config.lora_alpha,
        "a number",
        Value::as_f64,
    );
    let what = "a number from 0 to less than 1";
    fields.read("lora_dropout", &mut config.lora_dropout, what, |value| {
        value.as_f64().filter(|p| (0.0..1.0).contains(p))
    });
    let what = "\"none\", \"all\" or \"lora_only\"";
    fields.read("bias", &mut config.bias, what, |value| {
        Some(match value.as_str()? {
            "none" => TrainBias::None,
            "all" => TrainBias::All,
            "lora_only" => TrainBias::LoraOnly,
            _ => return None,
        })
    });
    let what = "true or false";
    fields.read("use_rslora", &mut config.use_rslora, what, Value::as_bool);
    fields.read(
        "fan_in_fan_out",
        &mut config.fan_in_fan_out,
        what,
        Value::as_bool,
    );
    let what = "an object of whole numbers of at least 1";
    fields.read("rank_pattern", &mut config.rank_pattern, what, |value| {
        let entries = value.as_object()?.iter();
        entries
            .map(|(key, value)| Some((key.clone(), rank(value)?)))
            .collect()
    });
    let what = "an object of numbers";
    fields.read("alpha_pattern", &mut config.alpha_pattern, what, |value| {
        let entries = value.as_object()?.iter();
        entries
            .map(|(key, value)| Some((key.clone(), value.as_f64()?)))
            .collect()
    });
    let named = fields
        .map
        .get("target_modules")
        .is_some_and(|value| !value.is_null());
    if !named {
        fields.problems.push(
            "`target_modules` is null or missing: PEFT then looks the model up in a table; name the \
             modules"
                .into(),
        );
    }
    let what = "null, a name, or an array of names";
    fields.read("target_modules", &mut config.target_modules, what, targets);
    fields.read(
        "exclude_modules",
        &mut config.exclude_modules,
        what,
        targets,
    );
    let what = "null or an array of names";
    fields.read(
        "modules_to_save",
        &mut config.modules_to_save,
        what,
        |value| nullable(value, strings),
    );
    let what = "null or a string";
    let name = &mut config.base_model_name_or_path;
    fields.read("base_model_name_or_path", name, what, |value| {
        nullable(value, |value| value.as_str().map(String::from))
    });
    let what = "null, SEQ_CLS, SEQ_2_SEQ_LM, CAUSAL_LM, TOKEN_CLS, QUESTION_ANS or \
                FEATURE_EXTRACTION";
    fields.read("task_type", &mut config.task_type, what, |value| {
        nullable(value, |value| TaskType::from_name(value.as_str()?))
    });
    let what = "true, false or \"gaussian\": others change the base model; convert the adapter \
                with PEFT's path_initial_model_for_weight_conversion";
    fields.read(
        "init_lora_weights",
        &mut config.init,
        what,
        |value| match value {
            Value::Bool(true) => Some(Init::Default),
            Value::Bool(false) => Some(Init::Random),
            Value::String(name) => match name.as_str() {
                "gaussian" => Some(Init::Gaussian),
                // The start of a trained adapter, of no effect on the base model.
                "eva" | "orthogonal" | "mica" => Some(Init::Default),
                _ => None,
            },
            _ => None,
        },
    );

    if let Some(Targets::Regex(name)) = &config.target_modules
        && name.eq_ignore_ascii_case("all-linear")
    {
        fields.problems.push(
            "`target_modules` is \"all-linear\", which PEFT resolves before it saves; name the \
             modules"
                .into(),
        );
    }
    fields.refuse_the_rest();
    if fields.problems.is_empty() {
        Ok(config)
    } else {
        Err(fields.problems)
    }
}

/// The keys not read yet, and what is wrong with those that were.
struct Fields {
    map: Map<String, Value>,
    problems: Vec<String>,
}

impl Fields {
    /// Takes a key out; an absent one leaves the default.
    fn read<T>(
        &mut self,
        key: &str,
        field: &mut T,
        what: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) {
        if let Some(value) = self.map.shift_remove(key) {
            match read(&value) {
                Some(value) => *field = value,
                None => self.wrong(key, &value, what),
            }
        }
    }

    fn wrong(&mut self, key: &str, value: &Value, what: &str) {
        let value = show(value);
        self.problems
            .push(format!("`{key}` is {value}: it must be {what}"));
    }

    /// What is left must be ignorable or switched off.
    fn refuse_the_rest(&mut self) {
        for (key, value) in std::mem::take(&mut self.map) {
            if IGNORED.contains(&key.as_str()) || is_off(&value) {
                continue;
            }
            let value = show(&value);
            let problem = match UNSUPPORTED.iter().find(|(name, _)| *name == key) {
                Some((_, what)) => format!("`{key}` is {value}: {what} is not supported"),
                None => format!("`{}` is {value}: the key is not known", shorten(&key)),
            };
            self.problems.push(problem);
        }
    }
}

/// Null, false and empty switch a feature off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(string) => string.is_empty(),
        Value::Array(array) => array.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

fn rank(value: &Value) -> Option<usize> {
    let rank = value.as_u64().filter(|rank| *rank > 0)?;
    usize::try_from(rank).ok()
}

fn nullable<T>(value: &Value, read: impl FnOnce(&Value) -> Option<T>) -> Option<Option<T>> {
    if value.is_null() {
        return Some(None);
    }
    read(value).map(Some)
}

fn strings(value: &Value) -> Option<Vec<String>> {
    let strings = value.as_array()?.iter();
    strings
        .map(|value| value.as_str().filter(|s| !s.is_empty()).map(String::from))
        .collect()
}

fn targets(value: &Value) -> Option<Option<Targets>> {
    nullable(value, |value| match value {
        Value::String(regex) => Some(Targets::Regex(regex.clone())),
        _ => strings(value).map(Targets::Names),
    })
}

/// A value in a message, cut where it is long.
fn show(value: &Value) -> String {
    shorten(&value.to_string())
}

pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str =
        r#"{"peft_type": "LORA", "target_modules": ["q"], "r": 2, "lora_alpha": 3"#;

    fn with(more: &str) -> Result<AdapterConfig, Vec<String>> {
        parse(format!("{MINIMAL}{more}}}").as_bytes())
    }

    #[test]
    fn the_minimal_file_has_pefts_defaults() {
        let config = with("").unwrap();
        assert_eq!((config.r, config.lora_alpha), (2, 3.0));
        assert_eq!(config.lora_dropout, 0.0);
        assert_eq!(config.bias, TrainBias::None);
        assert_eq!(config.init, Init::Default);
        assert_eq!(config.target_modules, Some(["q"].into()));
    }

    #[test]
    fn every_unsupported_feature_is_refused_by_name() {
        for (key, what) in UNSUPPORTED {
            for on in ["true", "[0]", "{\"a\": 1}", "3", "\"x\""] {
                let problems = with(&format!(", \"{key}\": {on}")).unwrap_err();
                assert_eq!(problems.len(), 1);
                assert!(
                    problems[0].contains(key) && problems[0].contains(what),
                    "{problems:?}"
                );
            }
            for off in ["null", "false", "[]", "{}"] {
                assert!(with(&format!(", \"{key}\": {off}")).is_ok(), "{key} {off}");
            }
        }
    }

    #[test]
    fn unknown_keys_are_accepted_only_when_off() {
        assert!(with(", \"new_thing\": null").is_ok());
        let problems = with(", \"new_thing\": 1").unwrap_err();
        assert_eq!(problems, ["`new_thing` is 1: the key is not known"]);
    }

    #[test]
    fn types_are_pefts() {
        for (key, value) in [
            ("r", "4.0"),
            ("r", "0"),
            ("r", "-1"),
            ("r", "null"),
            ("r", "true"),
            ("lora_alpha", "\"8\""),
            ("lora_dropout", "1.0"),
            ("lora_dropout", "-0.1"),
            ("bias", "\"some\""),
            ("bias", "null"),
            ("rank_pattern", "null"),
            ("rank_pattern", "{\"q\": 0}"),
            ("rank_pattern", "{\"q\": 1.5}"),
            ("alpha_pattern", "null"),
            ("alpha_pattern", "{\"q\": \"1\"}"),
            ("target_modules", "null"),
            ("target_modules", "\"all-linear\""),
            ("target_modules", "[1]"),
            ("exclude_modules", "3"),
            ("modules_to_save", "\"head\""),
            ("modules_to_save", "[\"\"]"),
            ("task_type", "\"CHAT\""),
            ("use_rslora", "1"),
            ("init_lora_weights", "\"pissa\""),
            ("init_lora_weights", "\"pissa_niter_4\""),
            ("init_lora_weights", "\"olora\""),
            ("init_lora_weights", "\"corda\""),
            ("init_lora_weights", "\"loftq\""),
            ("init_lora_weights", "\"lora_ga\""),
            ("init_lora_weights", "null"),
            ("peft_type", "\"lora\""),
            ("peft_type", "\"IA3\""),
        ] {
            let mut map: Map<String, Value> =
                serde_json::from_str(&format!("{MINIMAL}}}")).unwrap();
            map.insert(key.into(), serde_json::from_str(value).unwrap());
            let problems = parse(&serde_json::to_vec(&map).unwrap()).unwrap_err();
            assert_eq!(problems.len(), 1, "{key} {value}: {problems:?}");
            assert!(problems[0].contains(key), "{problems:?}");
        }
        let config = with(", \"init_lora_weights\": \"gaussian\", \"lora_dropout\": 0").unwrap();
        assert_eq!(config.init, Init::Gaussian);
        assert!(with(", \"alpha_pattern\": {\"q\": 2.5}, \"rank_pattern\": {\"q\": 2}").is_ok());
    }

    #[test]
    fn all_problems_are_listed() {
        let problems = parse(br#"{"r": 0, "use_dora": true, "bias": 1}"#).unwrap_err();
        assert_eq!(problems.len(), 5, "{problems:?}");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for json in ["", "[]", "{", "nul", "{\"r\": NaN}"] {
            assert!(parse(json.as_bytes()).is_err(), "{json}");
        }
        let deep = format!("{{\"r\": {}", "[".repeat(100_000));
        assert!(parse(deep.as_bytes()).is_err());
        assert!(parse(b"\xff\xfe").is_err());
    }
}
