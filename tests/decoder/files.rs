//! Directories: shards, names, and what is wrong with them.

use super::{folder, io, read};
use candle_core::safetensors::{load, save};
use candle_core::{DType, Device, Tensor};
use lora::models::decoder::{Decoder, DecoderConfig};
use lora::models::{self, Auto, Options, Weights};
use lora::{LoraConfig, LoraModel};
use lora_tests::assert_close;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A copy of a case whose tensors were changed.
fn changed(case: &str, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::copy(
        folder(case).join("config.json"),
        copy.path().join("config.json"),
    )
    .unwrap();
    let mut tensors = load(folder(case).join("model.safetensors"), &Device::Cpu).unwrap();
    change(&mut tensors);
    save(&tensors, copy.path().join("model.safetensors")).unwrap();
    copy
}

fn error(directory: &Path) -> String {
    let error = models::auto(directory, &Options::new())
        .unwrap_err()
        .to_string();
    error.replace(&directory.display().to_string(), "DIR")
}

fn with_config(json: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("config.json"), json).unwrap();
    directory
}

#[test]
fn shards_are_read_by_their_index() {
    let case = "qwen3_moe";
    let directory = changed(case, |_| {});
    let path = directory.path();
    let mut tensors = load(path.join("model.safetensors"), &Device::Cpu).unwrap();
    fs::remove_file(path.join("model.safetensors")).unwrap();
    let mut shards: [HashMap<String, Tensor>; 2] = Default::default();
    let mut names: Vec<String> = tensors.keys().cloned().collect();
    names.sort_unstable();
    let mut map = BTreeMap::new();
    for (index, name) in names.into_iter().enumerate() {
        let shard = usize::from(index % 3 == 0);
        map.insert(
            name.clone(),
            format!("model-{}-of-2.safetensors", shard + 1),
        );
        let tensor = tensors.remove(&name).unwrap();
        shards[shard].insert(name, tensor);
    }
    for (index, shard) in shards.iter().enumerate() {
        save(
            shard,
            path.join(format!("model-{}-of-2.safetensors", index + 1)),
        )
        .unwrap();
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    let index_path = path.join("model.safetensors.index.json");
    fs::write(&index_path, index.to_string()).unwrap();
    // Other files do not disturb.
    fs::write(path.join("adapter_model.safetensors"), "nothing").unwrap();

    let Auto::Decoder(created) = models::auto(path, &Options::new()).unwrap() else {
        panic!("no decoder")
    };
    let io = io(case);
    let logits = created.model.forward(&io["ids"], None).unwrap();
    assert_close("sharded", &logits, &io["logits"], 1e-5);

    fs::write(
        &index_path,
        r#"{"weight_map": {"model.norm.weight": "../x.safetensors"}}"#,
    )
    .unwrap();
    assert_eq!(
        error(path),
        "DIR/model.safetensors.index.json: puts `model.norm.weight` into \"../x.safetensors\", which is no \
         plain file name"
    );
}

#[test]
fn everything_wrong_is_in_one_error() {
    let directory = changed("llama_linear", |tensors| {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        tensors.remove("model.norm.weight");
        tensors.insert(
            "model.layers.0.self_attn.q_proj.weight".into(),
            zeros(&[32, 31]),
        );
        tensors.insert("model.layers.7.mlp.up_proj.weight".into(), zeros(&[2]));
        tensors.insert(
            "model.layers.1.mlp.up_proj.bias".into(),
            zeros(&[40]).to_dtype(DType::U32).unwrap(),
        );
        tensors.insert(
            "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
            zeros(&[4]),
        );
    });
    assert_eq!(
        error(directory.path()),
        "the weights do not fit the model:
  - `model.layers.0.self_attn.q_proj.weight` is [32, 31], the model's is [32, 32]
  - `model.layers.1.mlp.up_proj.bias` is U32, the model's is floating-point
  - `model.norm.weight` [32] is missing
  - `model.layers.7.mlp.up_proj.weight` is not a parameter of the model
  - the file is DIR"
    );
}

#[test]
fn harmless_tensors_are_reported() {
    let directory = changed("llama_llama3", |tensors| {
        let inv_freq = Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap();
        tensors.insert(
            "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
            inv_freq,
        );
        // A tied head that was saved, too.
        let head = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), head);
    });
    let created = models::auto(directory.path(), &Options::new())
        .unwrap()
        .into_decoder()
        .unwrap();
    assert_eq!(
        created.ignored,
        [
            "lm_head.weight",
            "model.layers.0.self_attn.rotary_emb.inv_freq"
        ]
    );
    assert!(created.fresh.is_empty());

    let directory = changed("llama_llama3", |tensors| {
        let head = (&tensors["model.embed_tokens.weight"] * 2.0).unwrap();
        tensors.insert("lm_head.weight".into(), head);
    });
    assert_eq!(
        error(directory.path()),
        "the weights do not fit the model:
  - `lm_head.weight` differs from `model.embed_tokens.weight`, but the configuration makes both one weight
  - the file is DIR"
    );
}

/// What `AutoModel` saves: no head, and names that begin behind `model.`.
#[test]
fn a_model_without_its_head_gives_hidden_states() {
    let case = "qwen2";
    let headless = |tensors: &mut HashMap<String, Tensor>| {
        tensors.remove("lm_head.weight").unwrap();
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(name, tensor)| (name.strip_prefix("model.").unwrap().to_string(), tensor))
            .collect();
    };
    let directory = changed(case, headless);
    // The class still asks for a head.
    assert_eq!(
        error(directory.path()),
        "the weights do not fit the model:
  - `lm_head.weight` [56, 32] is missing
  - the file is DIR"
    );
    let path = directory.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("Qwen2ForCausalLM", "Qwen2Model")).unwrap();
    let created = models::auto(directory.path(), &Options::new()).unwrap();
    let model = created.into_decoder().unwrap().model;
    let io = io(case);
    let hidden = model.hidden_states(&io["ids"], None, None).unwrap();
    assert_close(case, &hidden, &io["hidden"], 1e-5);
    assert!(model.lm_head().is_none());
    let error = model.forward(&io["ids"], None).unwrap_err().to_string();
    assert!(
        error.starts_with("the model has no head for the next token"),
        "{error}"
    );
    let adapted = model.to_lora(&LoraConfig::new(2)).unwrap();
    let hidden = adapted.hidden_states(&io["ids"], None, None).unwrap();
    assert_close(case, &hidden, &io["hidden"], 1e-5);
}

/// A tied head needs no weight: some files of whole models leave `model.` out, too.
#[test]
fn names_may_begin_behind_the_body() {
    let directory = changed("qwen3", |tensors| {
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(name, tensor)| (name.strip_prefix("model.").unwrap().to_string(), tensor))
            .collect();
    });
    let created = models::auto(directory.path(), &Options::new()).unwrap();
    let (model, io) = (created.into_decoder().unwrap().model, io("qwen3"));
    let logits = model.forward(&io["ids"], None).unwrap();
    assert_close("qwen3", &logits, &io["logits"], 1e-5);
}

#[test]
fn directories_that_are_no_models() {
    let empty = tempfile::tempdir().unwrap();
    assert!(error(empty.path()).starts_with("DIR/config.json: No such file"));
    let no_json = with_config("{");
    assert!(error(no_json.path()).starts_with("DIR/config.json: is not valid JSON: "));
    let list = with_config("[]");
    assert_eq!(error(list.path()), "DIR/config.json: is no JSON object");
    let twice = with_config(r#"{"model_type": "llama", "model_type": "gemma2"}"#);
    assert!(error(twice.path()).contains("the key `model_type` comes twice"));
    let other =
        with_config(r#"{"model_type": "llama", "architectures": ["LlamaForTokenClassification"]}"#);
    assert_eq!(
        error(other.path()),
        "DIR/config.json: `architectures` is [\"LlamaForTokenClassification\"]: decoders are \
         supported as ..ForCausalLM and ..Model"
    );
    let several =
        with_config(r#"{"model_type": "llama", "hidden_act": 3, "num_key_value_heads": 5}"#);
    assert_eq!(
        error(several.path()),
        "DIR/config.json:
  - `hidden_act` is 3: invalid type: integer `3`, expected a string
  - `num_key_value_heads` is 5: it must divide the 32 query heads (num_attention_heads)"
    );
    let no_weights = with_config(r#"{"model_type": "llama"}"#);
    assert!(error(no_weights.path()).starts_with("DIR: must hold one"));
    let cut = changed("llama_linear", |_| {});
    let file = cut.path().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    assert!(error(cut.path()).contains("the file was cut off or damaged"));
}

/// Random weights, as for any architecture.
#[test]
fn a_configuration_alone_makes_a_model() {
    let config: DecoderConfig = read("gemma2", DType::F32).config;
    let created = models::build::<Decoder>(&config, Weights::Random(3), &Options::new()).unwrap();
    assert!(
        created
            .fresh
            .contains(&"model.layers.2.mlp.up_proj.weight".into())
    );
    assert!(!created.fresh.contains(&"lm_head.weight".into()));
    let shapes = models::parameter_shapes::<Decoder>(&config).unwrap();
    assert_eq!(
        shapes["model.layers.0.self_attn.q_proj.weight"].dims(),
        [48, 32]
    );
    let created = models::build::<Decoder>(&config, Weights::Placeholder, &Options::new()).unwrap();
    assert!(created.fresh.is_empty());
    let path = folder("gemma2");
    let options = Options::new().dtype(DType::F64);
    let created = models::build::<Decoder>(&config, Weights::File(path), &options).unwrap();
    let ids = Tensor::new(&[[1u32, 2]], &Device::Cpu).unwrap();
    assert_eq!(
        created.model.forward(&ids, None).unwrap().dtype(),
        DType::F64
    );
}
