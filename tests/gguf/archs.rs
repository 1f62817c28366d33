//! Names of every architecture, experts, and heads that are the embedding.

use super::{adapter, load, same, values};
use candle_core::{Device, IndexOp, Tensor};
use lora::peft::{AdapterConfig, GgufOptions, WEIGHTS_FILE, adapter_to_gguf, gguf_to_adapter};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

type Tensors = HashMap<String, Tensor>;

/// llama.cpp's names by the package `gguf`: of each architecture, by transformers' path.
fn names() -> BTreeMap<String, BTreeMap<String, String>> {
    serde_json::from_str(include_str!("../fixtures/gguf/names.json")).unwrap()
}

fn tensor(shape: (usize, usize), start: usize) -> Tensor {
    let numbers = (start..).take(shape.0 * shape.1);
    let values: Vec<f32> = numbers.map(|i| (i % 97) as f32 * 0.125 - 3.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A and B of a module: 8 inputs, 32 outputs, or as many tokens.
fn pair(path: &str, is_tokens: bool) -> Tensors {
    let [a, b] = match is_tokens {
        true => ["lora_embedding_A", "lora_embedding_B"],
        false => ["lora_A.weight", "lora_B.weight"],
    };
    let (inputs, outputs) = if is_tokens { (32, 8) } else { (8, 32) };
    let key = |part| format!("base_model.model.{path}.{part}");
    Tensors::from([
        (key(a), tensor((2, inputs), 1)),
        (key(b), tensor((outputs, 2), 50)),
    ])
}

/// A directory with these tensors.
fn directory(config: Value, tensors: &Tensors) -> tempfile::TempDir {
    let dir = adapter(config);
    candle_core::safetensors::save(tensors, dir.path().join(WEIGHTS_FILE)).unwrap();
    dir
}

fn all(arch: &str) -> GgufOptions {
    GgufOptions::new(arch).heads(4, 2).experts(4).tied(false)
}

/// The file's bytes and the adapter that it becomes again.
fn there_and_back(dir: &Path, options: &GgufOptions) -> lora::Result<(Vec<u8>, Tensors)> {
    let out = tempfile::tempdir().unwrap();
    let (gguf, back) = (out.path().join("x.gguf"), out.path().join("back"));
    adapter_to_gguf(dir, &gguf, options)?;
    gguf_to_adapter(&gguf, &back, options)?;
    Ok((fs::read(gguf).unwrap(), load(back.join(WEIGHTS_FILE))))
}

fn holds(bytes: &[u8], name: &str) -> bool {
    bytes
        .windows(name.len())
        .any(|part| part == name.as_bytes())
}

/// Layers for which llama.cpp has no adapter.
const REFUSED: [(&str, &str); 9] = [
    ("cohere2", "token_embd"),
    ("command-r", "token_embd"),
    ("deepseek2", "output"),
    ("deepseek2", "blk.3.attn_kv_a_mqa"),
    ("deepseek2", "blk.3.attn_kv_b"),
    ("deepseek2", "blk.3.attn_q_a"),
    ("deepseek2", "blk.3.attn_q_b"),
    ("gemma", "token_embd"),
    ("gemma2", "token_embd"),
];

#[test]
fn names_are_those_of_the_package() {
    let all_names = names();
    assert_eq!(all_names.len(), 32);
    for (arch, names) in &all_names {
        // Mixtral has other names in newer versions of transformers: a name may come twice.
        let mut batches = [BTreeMap::new(), BTreeMap::new()];
        for (path, name) in names {
            if REFUSED.contains(&(arch.as_str(), name.as_str())) {
                let dir = directory(json!({}), &pair(path, name == "token_embd"));
                let error = there_and_back(dir.path(), &all(arch))
                    .unwrap_err()
                    .to_string();
                assert!(
                    error.contains("has no adapter of this layer"),
                    "{arch} {error}"
                );
                continue;
            }
            let batch = usize::from(batches[0].contains_key(name));
            batches[batch].insert(name, path.replace('*', "2"));
        }
        for (number, batch) in batches
            .iter()
            .enumerate()
            .filter(|(_, batch)| !batch.is_empty())
        {
            let pairs = batch
                .iter()
                .map(|(name, path)| pair(path, *name == "token_embd"));
            let expected: Tensors = pairs.flatten().collect();
            let dir = directory(json!({}), &expected);
            let (bytes, mut back) = there_and_back(dir.path(), &all(arch)).unwrap();
            for name in batch.keys() {
                for part in ["lora_a", "lora_b"] {
                    assert!(
                        holds(&bytes, &format!("{name}.weight.{part}")),
                        "{arch} {name}"
                    );
                }
            }
            // The other experts get zeros.
            back.retain(|_, tensor| values(tensor).iter().any(|value| *value != 0.0));
            if number == 0 {
                same(&back, &expected, 0.0);
            }
        }
    }
}

/// The same update of every expert, as modules and as the two weights of all.
#[test]
fn experts_as_modules_and_as_one_weight() {
    let (count, rank, hidden, inner) = (3, 2, 8, 5);
    let prefix = "base_model.model.model.layers.0.mlp.experts";
    let fused = [
        (
            "base_layer.",
            tensor((count * rank, hidden), 3),
            tensor((2 * inner, rank * count), 7),
        ),
        (
            "",
            tensor((count * rank, inner), 11),
            tensor((hidden, rank * count), 13),
        ),
    ];
    let mut whole = Tensors::new();
    let mut modules = Tensors::new();
    for (wrapper, a, b) in fused {
        for expert in 0..count {
            let a = a.i(expert * rank..(expert + 1) * rank).unwrap();
            // An expert's columns of B are `count` apart.
            let columns: Vec<u32> = (0..rank).map(|r| (r * count + expert) as u32).collect();
            let columns = Tensor::new(columns, &Device::Cpu).unwrap();
            let b = b.index_select(&columns, 1).unwrap();
            let parts = match wrapper {
                "" => vec![("down_proj", b)],
                _ => vec![
                    ("gate_proj", b.i(..inner).unwrap()),
                    ("up_proj", b.i(inner..).unwrap()),
                ],
            };
            for (part, b) in parts {
                let key = |matrix| format!("{prefix}.{expert}.{part}.lora_{matrix}.weight");
                modules.insert(key("A"), a.contiguous().unwrap());
                modules.insert(key("B"), b.contiguous().unwrap());
            }
        }
        whole.insert(format!("{prefix}.{wrapper}lora_A.weight"), a);
        whole.insert(format!("{prefix}.{wrapper}lora_B.weight"), b);
    }
    let options = GgufOptions::new("qwen3moe").experts(count);
    let parameters = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"];
    let config = json!({"target_modules": null, "target_parameters": parameters});
    let whole = directory(config, &whole);
    let (_, of_modules) = there_and_back(directory(json!({}), &modules).path(), &options).unwrap();
    let (_, of_whole) = there_and_back(whole.path(), &options).unwrap();
    same(&of_modules, &modules, 0.0);
    same(&of_whole, &modules, 0.0);

    let path = whole.path().join(WEIGHTS_FILE);
    let before = load(&path);
    let key = format!("{prefix}.base_layer.lora_B.weight");
    let mut odd = before.clone();
    odd.insert(
        key.clone(),
        before[&key].i(1..).unwrap().contiguous().unwrap(),
    );
    candle_core::safetensors::save(&odd, &path).unwrap();
    let error = there_and_back(whole.path(), &options)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("gate_up_proj` has 9 outputs, which are not two halves"),
        "{error}"
    );
    candle_core::safetensors::save(&before, &path).unwrap();

    let error = there_and_back(whole.path(), &GgufOptions::new("qwen3moe")).unwrap_err();
    assert!(
        error.to_string().contains("set `experts` of the options"),
        "{error}"
    );
    let error = there_and_back(whole.path(), &options.clone().experts(2)).unwrap_err();
    assert!(
        error.to_string().contains("for each of 2 experts"),
        "{error}"
    );
    let few = there_and_back(directory(json!({}), &modules).path(), &options.experts(2));
    let error = few.unwrap_err().to_string();
    assert!(
        error.contains("experts.2.up_proj` does not fit beside the other experts"),
        "{error}"
    );
}

/// llama.cpp has one rank and one scaling for all experts of a layer.
#[test]
fn experts_of_other_ranks() {
    let path = |expert| format!("model.layers.0.mlp.experts.{expert}.up_proj");
    let mut tensors = pair(&path(1), false);
    for (key, tensor) in pair(&path(0), false) {
        let is_a = key.contains("lora_A");
        let first = if is_a {
            tensor.i(..1)
        } else {
            tensor.i((.., ..1))
        };
        tensors.insert(key, first.unwrap().contiguous().unwrap());
    }
    let patterns = json!({"rank_pattern": {"0.up_proj": 1}, "alpha_pattern": {"0.up_proj": 3}});
    let dir = directory(patterns, &tensors);
    let options = GgufOptions::new("qwen3moe").experts(2);
    let out = tempfile::tempdir().unwrap();
    let (gguf, back) = (out.path().join("x.gguf"), out.path().join("back"));
    adapter_to_gguf(dir.path(), &gguf, &options).unwrap();
    gguf_to_adapter(&gguf, &back, &options).unwrap();
    let config = AdapterConfig::read(&back).unwrap();
    let read = load(back.join(WEIGHTS_FILE));
    let update = |tensors: &Tensors, expert, scaling: f64| {
        let key = |part| format!("base_model.model.{}.lora_{part}.weight", path(expert));
        let product = tensors[&key("B")].matmul(&tensors[&key("A")]).unwrap();
        values(&(product * scaling).unwrap())
    };
    let scaling = config.lora_alpha / config.r as f64;
    for (expert, before) in [(0, 3.0), (1, 2.5)] {
        let (read, given) = (
            update(&read, expert, scaling),
            update(&tensors, expert, before),
        );
        for (read, given) in read.into_iter().zip(given) {
            assert!(
                (read - given).abs() <= 1e-5 * given.abs().max(1.0),
                "{expert}: {read} {given}"
            );
        }
    }
}

/// What to do with an adapter that llama.cpp cannot apply.
const MERGE: &str = "merge the adapter into the model's GGUF file (peft::merge_gguf) or its safetensors \
                     (peft::merge_checkpoint)";

/// Each error names what mends it.
#[test]
fn errors_name_their_fix() {
    let error = |config: Value, path: &str, options: &GgufOptions| {
        let error = there_and_back(directory(config, &pair(path, false)).path(), options);
        error.unwrap_err().to_string()
    };
    let llama = GgufOptions::new("llama").heads(4, 2);
    let query = "model.layers.0.self_attn.q_proj";
    let dora = error(json!({"use_dora": true}), query, &llama);
    let fix = format!("`use_dora` is set to a value that a GGUF adapter cannot hold: {MERGE}");
    assert!(dora.contains(&fix), "{dora}");
    let unknown = error(json!({}), "model.layers.0.self_attn.rotary", &llama);
    let fix = "has no known name in llama.cpp's llama: merge the adapter into the model's safetensors \
               (peft::merge_checkpoint), which llama.cpp's convert_hf_to_gguf.py converts";
    assert!(unknown.contains(fix), "{unknown}");
    let rank = error(json!({"r": 7}), query, &llama);
    let fix = "but 7 in the configuration: see `r` and `rank_pattern` in adapter_config.json";
    assert!(rank.contains(fix), "{rank}");
    let expert = "model.layers.0.mlp.experts.1.up_proj";
    let none = error(json!({}), expert, &llama);
    assert!(none.contains("set `experts` of the options"), "{none}");
    let many = error(json!({}), expert, &llama.clone().experts(5000));
    let fix = "`experts` of the options counts 5000: 1 to 4096 are possible";
    assert!(many.contains(fix), "{many}");
    let few = error(json!({}), expert, &llama.experts(1));
    let fix = "a number below 1, the `experts` of the options";
    assert!(few.contains(fix), "{few}");
}

/// llama.cpp refuses an adapter of a head that is the embedding, and stops at one of the embedding.
#[test]
fn a_head_that_is_the_embedding() {
    let tied = |arch: &str| GgufOptions::new(arch).heads(4, 2).tied(true);
    for (path, is_tokens) in [("lm_head", false), ("model.embed_tokens", true)] {
        let dir = directory(json!({}), &pair(path, is_tokens));
        for arch in ["llama", "qwen2", "qwen3", "gemma3"] {
            let error = there_and_back(dir.path(), &tied(arch))
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("`{path}` has no place")), "{error}");
            assert!(error.contains("tie_word_embeddings"), "{error}");
            assert!(error.contains(&format!("if not, {MERGE}")), "{error}");
            there_and_back(dir.path(), &tied(arch).tied(false)).unwrap();
        }
        // What transformers takes where a model does not say.
        for arch in ["gemma", "gemma2", "gemma3", "gemma4", "smollm3", "cohere2"] {
            let unsaid = GgufOptions::new(arch).heads(4, 2);
            there_and_back(dir.path(), &unsaid).unwrap_err();
        }
        let error = there_and_back(dir.path(), &tied("gemma").tied(false)).unwrap_err();
        let fix = format!("for gemma, llama.cpp has no adapter of this layer: {MERGE}");
        assert!(error.to_string().contains(&fix), "{error}");
    }
    // An encoder has no head.
    let words = pair("embeddings.word_embeddings", true);
    there_and_back(directory(json!({}), &words).path(), &tied("bert")).unwrap();
}

/// InternLM2's one module becomes three weights.
#[test]
fn queries_keys_and_values_apart() {
    let path = "model.layers.0.attention.wqkv";
    let dir = directory(json!({}), &pair(path, false));
    let out = tempfile::tempdir().unwrap();
    let gguf = out.path().join("x.gguf");
    adapter_to_gguf(dir.path(), &gguf, &all("internlm2")).unwrap();
    let bytes = fs::read(&gguf).unwrap();
    for name in ["attn_q", "attn_k", "attn_v"] {
        assert!(holds(&bytes, &format!("blk.0.{name}.weight.lora_b")));
    }
    let back = gguf_to_adapter(&gguf, out.path().join("back"), &all("internlm2"));
    let error = back.unwrap_err().to_string();
    assert!(error.contains("parts cannot be joined"), "{error}");
}

/// Joined experts of PEFT up to 0.18 have A and B the other way round; square ones do not show it.
#[test]
fn experts_of_older_versions() {
    let (count, rank, width) = (2, 2, 4);
    let prefix = "base_model.model.model.layers.0.mlp.experts";
    let tensors = Tensors::from([
        (
            format!("{prefix}.lora_A.weight"),
            tensor((count * rank, width), 3),
        ),
        (
            format!("{prefix}.lora_B.weight"),
            tensor((width, rank * count), 7),
        ),
    ]);
    let options = GgufOptions::new("qwen3moe").experts(count);
    let written = |version: serde_json::Value| {
        let parameters = ["mlp.experts.down_proj"];
        let config = json!({
            "target_modules": null,
            "target_parameters": parameters,
            "peft_version": version,
        });
        there_and_back(directory(config, &tensors).path(), &options)
    };
    written(json!("0.21.2")).unwrap();
    for (version, words) in [
        (json!("0.17.1"), "is of PEFT up to 0.18"),
        (json!(null), "AdapterDir::new(dir).old_experts(true)"),
    ] {
        let error = written(version).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
