//! Reading `adapter_config.json`: PEFT's types and defaults.

use super::write;
use crate::error::shorten;
use crate::file;
use crate::peft::config::adapter_config::{InitWeights, OneOrMany, TokenIndices};
use crate::peft::{AdapterConfig, TaskType};
use crate::{Targets, TrainBias};
use indexmap::IndexMap;
use serde_json::{Map, Value};

/// Parses the file; an error holds every problem. Keys that are not known are kept.
pub(in crate::peft) fn parse(json: &[u8]) -> Result<AdapterConfig, Vec<String>> {
    let map = match file::parse_json(json) {
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
        None if fields.map.contains_key("lora_parameters") => fields.problems.push(
            "`peft_type` is missing: the settings are mlx-lm's, whose adapters \
             peft::import::import converts"
                .into(),
        ),
        None => fields
            .problems
            .push("`peft_type` is missing: is it PEFT's file?".into()),
    }
    // PEFT never writes this key, and passes over it.
    fields.map.shift_remove("runtime_config");

    let mut config = AdapterConfig::new();
    read_numbers(&mut fields, &mut config);
    read_flags(&mut fields, &mut config);
    read_choices(&mut fields, &mut config);
    read_texts(&mut fields, &mut config);
    read_foreign(&mut fields, &mut config);
    config.unknown = std::mem::take(&mut fields.map);
    if fields.problems.is_empty() {
        Ok(config)
    } else {
        Err(fields.problems)
    }
}

fn read_numbers(fields: &mut Fields, config: &mut AdapterConfig) {
    fields.read("r", &mut config.r, "a whole number of at least 1", rank);
    let what = "a whole number of at least 1";
    fields.read(
        "qalora_group_size",
        &mut config.qalora_group_size,
        what,
        rank,
    );
    let what = "a number";
    fields.read("lora_alpha", &mut config.lora_alpha, what, Value::as_f64);
    let what = "a number from 0 to 1";
    fields.read("lora_dropout", &mut config.lora_dropout, what, |value| {
        value.as_f64().filter(|p| (0.0..=1.0).contains(p))
    });
    let what = "an object of whole numbers of at least 1";
    fields.read("rank_pattern", &mut config.rank_pattern, what, |value| {
        pattern(value, rank)
    });
    let what = "an object of numbers";
    fields.read("alpha_pattern", &mut config.alpha_pattern, what, |value| {
        pattern(value, Value::as_f64)
    });
    let what = "null, a whole number, or an array of them";
    let field = &mut config.layers_to_transform;
    fields.read("layers_to_transform", field, what, |value| {
        nullable(value, |value| one_or_many(value, whole))
    });
    let what = "null, an array of whole numbers, or an object of such arrays";
    let field = &mut config.trainable_token_indices;
    fields.read("trainable_token_indices", field, what, |value| {
        nullable(value, token_indices)
    });
}

fn read_flags(fields: &mut Fields, config: &mut AdapterConfig) {
    for (key, field) in config.flags_mut() {
        let default = *field;
        fields.read(key, field, "true or false", |value| {
            Some(nullable(value, Value::as_bool)?.unwrap_or(default))
        });
    }
}

fn read_choices(fields: &mut Fields, config: &mut AdapterConfig) {
    let what = "\"none\", \"all\" or \"lora_only\"";
    fields.read("bias", &mut config.bias, what, |value| {
        Some(match value.as_str()? {
            "none" => TrainBias::None,
            "all" => TrainBias::All,
            "lora_only" => TrainBias::LoraOnly,
            _ => return None,
        })
    });
    let what = "null, SEQ_CLS, SEQ_2_SEQ_LM, CAUSAL_LM, TOKEN_CLS, QUESTION_ANS or \
                FEATURE_EXTRACTION";
    fields.read("task_type", &mut config.task_type, what, |value| {
        nullable(value, |value| TaskType::from_name(value.as_str()?))
    });
    let what = "true, false or a name";
    let field = &mut config.init_lora_weights;
    fields.read("init_lora_weights", field, what, |value| match value {
        Value::Null => Some(InitWeights::Flag(true)),
        Value::Bool(flag) => Some(InitWeights::Flag(*flag)),
        Value::String(name) => Some(InitWeights::Name(name.clone())),
        _ => None,
    });
    let what = "null, a name, or an array of names";
    for (key, field) in [
        ("target_modules", &mut config.target_modules),
        ("exclude_modules", &mut config.exclude_modules),
    ] {
        fields.read(key, field, what, targets);
    }
}

fn read_texts(fields: &mut Fields, config: &mut AdapterConfig) {
    let what = "null or an array of names";
    for (key, field) in [
        ("modules_to_save", &mut config.modules_to_save),
        ("target_parameters", &mut config.target_parameters),
    ] {
        fields.read(key, field, what, |value| nullable(value, strings));
    }
    let what = "null, a name, or an array of names";
    let field = &mut config.layers_pattern;
    fields.read("layers_pattern", field, what, |value| match value {
        // What some trainers write for none.
        Value::String(empty) if empty.is_empty() => Some(None),
        value => nullable(value, |value| one_or_many(value, string)),
    });
    let what = "null or a string";
    for (key, field) in [
        (
            "base_model_name_or_path",
            &mut config.base_model_name_or_path,
        ),
        ("peft_version", &mut config.peft_version),
        ("revision", &mut config.revision),
    ] {
        fields.read(key, field, what, |value| {
            nullable(value, |value| value.as_str().map(String::from))
        });
    }
}

/// Reads the settings that are kept as they are.
fn read_foreign(fields: &mut Fields, config: &mut AdapterConfig) {
    for (key, field) in [
        (
            "alora_invocation_tokens",
            &mut config.alora_invocation_tokens,
        ),
        ("arrow_config", &mut config.arrow_config),
        ("auto_mapping", &mut config.auto_mapping),
        ("corda_config", &mut config.corda_config),
        ("eva_config", &mut config.eva_config),
        ("kasa_config", &mut config.kasa_config),
        ("layer_replication", &mut config.layer_replication),
        ("loftq_config", &mut config.loftq_config),
        ("lora_ga_config", &mut config.lora_ga_config),
        ("megatron_config", &mut config.megatron_config),
        ("megatron_core", &mut config.megatron_core),
        ("monteclora_config", &mut config.monteclora_config),
        ("use_bdlora", &mut config.use_bdlora),
        ("velora_config", &mut config.velora_config),
    ] {
        if let Some(value) = fields.map.shift_remove(key) {
            *field = write::sorted(value);
        }
    }
}

/// The keys not read yet, and the problems of the keys that were.
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
}

/// Null, false and empty switch a feature off.
pub(in crate::peft) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(string) => string.is_empty(),
        Value::Array(array) => array.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

fn whole(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

fn rank(value: &Value) -> Option<usize> {
    whole(value).filter(|rank| *rank > 0)
}

/// The values of a setting that goes by patterns. Null is none.
fn pattern<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<IndexMap<String, T>> {
    if value.is_null() {
        return Some(IndexMap::new());
    }
    let entries = value.as_object()?.iter();
    entries
        .map(|(key, value)| Some((key.clone(), read(value)?)))
        .collect()
}

fn nullable<T>(value: &Value, read: impl FnOnce(&Value) -> Option<T>) -> Option<Option<T>> {
    if value.is_null() {
        return Some(None);
    }
    read(value).map(Some)
}

fn array<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    value.as_array()?.iter().map(read).collect()
}

fn one_or_many<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<OneOrMany<T>> {
    match value {
        Value::Array(_) => array(value, read).map(OneOrMany::Many),
        _ => read(value).map(OneOrMany::One),
    }
}

fn string(value: &Value) -> Option<String> {
    value.as_str().filter(|s| !s.is_empty()).map(String::from)
}

fn strings(value: &Value) -> Option<Vec<String>> {
    array(value, string)
}

fn token_indices(value: &Value) -> Option<TokenIndices> {
    let rows = |value: &Value| array(value, |row| u32::try_from(row.as_u64()?).ok());
    match value {
        Value::Object(modules) => {
            let modules = modules.iter();
            let modules = modules.map(|(name, value)| Some((name.clone(), rows(value)?)));
            let mut modules: indexmap::IndexMap<_, _> = modules.collect::<Option<_>>()?;
            modules.sort_keys();
            Some(TokenIndices::Modules(modules))
        }
        _ => rows(value).map(TokenIndices::Input),
    }
}

fn targets(value: &Value) -> Option<Option<Targets>> {
    nullable(value, |value| match value {
        Value::String(regex) => Some(Targets::Regex(regex.clone())),
        _ => strings(value).map(Targets::Names),
    })
}

/// A value in a message, cut where it is long.
pub(super) fn show(value: &Value) -> String {
    shorten(&value.to_string())
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
        let mut expected = AdapterConfig::new();
        expected.target_modules = Some(["q"].into());
        expected.r = 2;
        expected.lora_alpha = 3.0;
        assert_eq!(config, expected);
    }

    #[test]
    fn unknown_keys_are_kept_and_told_of() {
        let off = with(", \"new_thing\": null, \"runtime_config\": {\"a\": 1}").unwrap();
        assert_eq!(off.unknown_note(), None);
        let more = ", \"transformers_version\": \"5.0\", \"x\": false, \"other\": [2]";
        let config = with(more).unwrap();
        assert_eq!(config.unknown["other"][0], 2);
        assert_eq!(
            config.unknown_note().unwrap(),
            "adapter_config.json has settings that are not known and have no effect here: \
             `transformers_version` is \"5.0\", `other` is [2]"
        );
    }

    #[test]
    fn null_and_empty_are_pefts_defaults() {
        let config = with(
            ", \"use_dora\": null, \"fan_in_fan_out\": null, \"inference_mode\": null, \
             \"init_lora_weights\": null, \"layers_pattern\": \"\", \"rank_pattern\": null, \
             \"alpha_pattern\": null",
        );
        assert_eq!(config.unwrap(), with("").unwrap());
        assert_eq!(with(", \"lora_dropout\": 1.0").unwrap().lora_dropout, 1.0);
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
            ("lora_dropout", "1.1"),
            ("lora_dropout", "-0.1"),
            ("bias", "\"some\""),
            ("bias", "null"),
            ("rank_pattern", "{\"q\": 0}"),
            ("rank_pattern", "{\"q\": 1.5}"),
            ("alpha_pattern", "{\"q\": \"1\"}"),
            ("target_modules", "[1]"),
            ("exclude_modules", "3"),
            ("modules_to_save", "\"head\""),
            ("modules_to_save", "[\"\"]"),
            ("task_type", "\"CHAT\""),
            ("use_rslora", "1"),
            ("lora_bias", "\"yes\""),
            ("init_lora_weights", "1"),
            ("layers_to_transform", "-1"),
            ("layers_to_transform", "[\"0\"]"),
            ("layers_to_transform", "1.5"),
            ("layers_pattern", "3"),
            ("trainable_token_indices", "[-1]"),
            ("trainable_token_indices", "[4294967296]"),
            ("trainable_token_indices", "{\"a\": 3}"),
            ("target_parameters", "\"experts.w\""),
            ("peft_type", "\"lora\""),
            ("peft_type", "\"IA3\""),
            ("peft_version", "1"),
        ] {
            let mut map: Map<String, Value> =
                serde_json::from_str(&format!("{MINIMAL}}}")).unwrap();
            map.insert(key.into(), serde_json::from_str(value).unwrap());
            let problems = parse(&serde_json::to_vec(&map).unwrap()).unwrap_err();
            assert_eq!(problems.len(), 1, "{key} {value}: {problems:?}");
            assert!(problems[0].contains(key), "{problems:?}");
        }
    }

    #[test]
    fn all_problems_are_listed() {
        let problems = parse(br#"{"r": 0, "use_dora": 2, "bias": 1, "x": 1}"#).unwrap_err();
        assert_eq!(problems.len(), 4, "{problems:?}");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for json in [
            "",
            "[]",
            "{",
            "nul",
            "{\"r\": NaN}",
            "{\"lora_alpha\": 1e999}",
        ] {
            assert!(parse(json.as_bytes()).is_err(), "{json}");
        }
        let deep = format!("{{\"r\": {}", "[".repeat(100_000));
        assert!(parse(deep.as_bytes()).is_err());
        let deep = format!("{{\"arrow_config\": {}", "{\"a\":".repeat(100_000));
        assert!(parse(deep.as_bytes()).is_err());
        assert!(parse(b"\xff\xfe").is_err());
    }
}
