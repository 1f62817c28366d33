//! Small models as llama.cpp's converter and quantiser write them.

use super::super::folder;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::safetensors::{load, save};
use candle_core::{DType, Device, Tensor};
use lora::models::decoder::Decoder;
use lora::models::{self, Options};
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::PathBuf;
use tempfile::TempDir;

/// A file, and the directory of the model with its dequantised weights.
pub(super) struct Pair {
    pub(super) root: TempDir,
}

impl Pair {
    pub(super) fn gguf(&self) -> PathBuf {
        self.root.path().join("model.gguf")
    }

    pub(super) fn quantised(&self) -> Decoder {
        let auto = models::auto(self.gguf(), &Options::new());
        let auto = auto.unwrap_or_else(|error| panic!("{error}"));
        auto.into_decoder().unwrap().model
    }

    pub(super) fn full(&self) -> Decoder {
        let auto = models::auto(self.root.path(), &Options::new()).unwrap();
        auto.into_decoder().unwrap().model
    }
}

/// What llama.cpp's converter makes of a module's name.
fn name(name: &str, norms: &[(&str, &str)]) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    let common = [
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("block_sparse_moe.gate.", "ffn_gate_inp."),
        ("mlp.gate.", "ffn_gate_inp."),
        ("block_sparse_moe.experts", "ffn_experts"),
        ("mlp.experts", "ffn_experts"),
        ("w1.weight", "gate_proj.weight"),
        ("w2.weight", "down_proj.weight"),
        ("w3.weight", "up_proj.weight"),
    ];
    for (from, to) in norms.iter().chain(&common) {
        name = name.replace(from, to);
    }
    name
}

/// Both halves of each head in pairs, as llama.cpp's converter stores queries and keys.
fn paired(weight: &Tensor, heads: usize) -> Tensor {
    let shape = weight.dims().to_vec();
    let rest: usize = shape[1..].iter().product();
    let half = shape[0] / heads / 2;
    let halves = weight.reshape((heads, 2, half, rest)).unwrap();
    let pairs = halves.transpose(1, 2).unwrap().contiguous().unwrap();
    pairs.reshape(shape).unwrap()
}

/// Writes a model as llama.cpp's converter and quantiser do; where a row is no whole number of blocks,
/// the weight stays in f32.
pub(super) fn write(mut config: Json, tensors: HashMap<String, Tensor>, kind: GgmlDType) -> Pair {
    let root = tempfile::tempdir().unwrap();
    let arch = match config["model_type"].as_str().unwrap() {
        "mistral" => "llama",
        "gemma3_text" => "gemma3",
        "mixtral" => "llama",
        "qwen3_moe" => "qwen3moe",
        other => other,
    }
    .to_string();
    let number = |config: &Json, key: &str| config[key].as_u64().unwrap() as u32;
    let float = |config: &Json, key: &str| config[key].as_f64().map(|value| value as f32);
    let (heads, kv) = (
        number(&config, "num_attention_heads"),
        number(&config, "num_key_value_heads"),
    );
    let dim = match config["head_dim"].as_u64() {
        Some(dim) => dim as u32,
        None => number(&config, "hidden_size") / heads,
    };
    // llama.cpp has no setting for these.
    if arch.starts_with("gemma") && arch != "gemma" {
        config["query_pre_attn_scalar"] = json!(dim);
    }
    let mut tensors = tensors;
    if arch == "qwen3moe" {
        config["norm_topk_prob"] = json!(true);
        // There every layer has experts: the first gets those of the second, turned round.
        config["mlp_only_layers"] = json!([]);
        tensors.retain(|name, _| !name.starts_with("model.layers.0.mlp."));
        let second: Vec<(String, Tensor)> = tensors.clone().into_iter().collect();
        for (name, tensor) in second {
            if let Some(rest) = name.strip_prefix("model.layers.1.mlp.") {
                tensors.insert(format!("model.layers.0.mlp.{rest}"), tensor.neg().unwrap());
            }
        }
    }
    if arch == "smollm3" {
        config["no_rope_layers"] = json!([1, 1, 1, 0]);
    }
    let rope = match &config["rope_parameters"] {
        Json::Null => config["rope_scaling"].clone(),
        rope => rope.clone(),
    };
    let local = float(&rope["sliding_attention"], "rope_theta");
    let local = local.or(float(&config, "rope_local_base_freq"));
    let rope = match &rope["full_attention"] {
        Json::Null => rope,
        full => full.clone(),
    };
    let theta = float(&rope, "rope_theta").or(float(&config, "rope_theta"));
    let mut fields: Vec<(String, Value)> = vec![
        ("general.architecture".into(), Value::String(arch.clone())),
        ("general.name".into(), Value::String("tiny".into())),
    ];
    let mut set = |key: &str, value: Value| fields.push((format!("{arch}.{key}"), value));
    for (key, of) in [
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("block_count", "num_hidden_layers"),
        ("feed_forward_length", "intermediate_size"),
        ("vocab_size", "vocab_size"),
    ] {
        set(key, Value::U32(number(&config, of)));
    }
    for (key, of) in [
        ("expert_count", "num_local_experts"),
        ("expert_used_count", "num_experts_per_tok"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
    ] {
        if config[of].is_u64() {
            set(key, Value::U32(number(&config, of)));
        }
    }
    set("attention.head_count", Value::U32(heads));
    set("attention.head_count_kv", Value::U32(kv));
    set("attention.key_length", Value::U32(dim));
    set("attention.value_length", Value::U32(dim));
    let part = float(&rope, "partial_rotary_factor").unwrap_or(1.0);
    let turned = (dim as f32 * part) as u32;
    set("rope.dimension_count", Value::U32(turned));
    set("rope.freq_base", Value::F32(theta.unwrap_or(1e4)));
    for (key, of) in [
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("attention.scale", "attention_multiplier"),
        ("logit_scale", "logits_scaling"),
    ] {
        if let Some(value) = float(&config, of) {
            set(key, Value::F32(value));
        }
    }
    if let Some(local) = local {
        set("rope.freq_base_swa", Value::F32(local));
    }
    if let Some(window) = config["sliding_window"].as_u64() {
        set("attention.sliding_window", Value::U32(window as u32));
    }
    if let (Some(types), "gemma2" | "gemma3") = (config["layer_types"].as_array(), &*arch) {
        let slides = types
            .iter()
            .map(|of| Value::Bool(of == "sliding_attention"));
        set(
            "attention.sliding_window_pattern",
            Value::Array(slides.collect()),
        );
    }
    let mut out: Vec<(String, QTensor)> = Vec::new();
    let mut table = |name: &str, values: Vec<f32>| {
        let count = values.len();
        let values = Tensor::from_vec(values, count, &Device::Cpu).unwrap();
        let values = QTensor::quantize(&values, GgmlDType::F32).unwrap();
        out.push((name.into(), values));
    };
    let floats = |list: &Json| -> Vec<f32> {
        let list = list.as_array().unwrap().iter();
        list.map(|value| value.as_f64().unwrap() as f32).collect()
    };
    match rope["rope_type"].as_str().or(rope["type"].as_str()) {
        Some("linear") => {
            set("rope.scaling.type", Value::String("linear".into()));
            set(
                "rope.scaling.factor",
                Value::F32(float(&rope, "factor").unwrap()),
            );
        }
        Some("yarn") => {
            set("rope.scaling.type", Value::String("yarn".into()));
            set(
                "rope.scaling.factor",
                Value::F32(float(&rope, "factor").unwrap()),
            );
            let original = number(&rope, "original_max_position_embeddings");
            set("rope.scaling.original_context_length", Value::U32(original));
        }
        Some("longrope") => {
            let original = number(&config, "original_max_position_embeddings");
            set("rope.scaling.original_context_length", Value::U32(original));
            table("rope_factors_short.weight", floats(&rope["short_factor"]));
            table("rope_factors_long.weight", floats(&rope["long_factor"]));
        }
        Some("llama3") => {
            let of = |key: &str| rope[key].as_f64().unwrap();
            let (low, high) = (of("low_freq_factor"), of("high_freq_factor"));
            let (factor, old) = (of("factor"), of("original_max_position_embeddings"));
            let theta = f64::from(theta.unwrap());
            let divisors = (0..dim / 2).map(|pair| {
                let wavelength =
                    2.0 * std::f64::consts::PI * theta.powf(f64::from(2 * pair) / f64::from(dim));
                if wavelength < old / high {
                    1.0
                } else if wavelength > old / low {
                    factor as f32
                } else {
                    let smooth = (old / wavelength - low) / (high - low);
                    (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
                }
            });
            table("rope_freqs.weight", divisors.collect());
        }
        _ => {}
    }

    let norms: &[(&str, &str)] = match &*arch {
        "gemma2" | "gemma3" => &[
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "post_attention_norm"),
            ("pre_feedforward_layernorm", "ffn_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
        ],
        "olmo2" => &[
            ("post_attention_layernorm", "post_attention_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
        ],
        _ => &[
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ],
    };
    let is_paired = ["llama", "granite", "smollm3"].contains(&&*arch);
    let mut full = HashMap::new();
    let mut experts: BTreeMap<String, BTreeMap<usize, (Tensor, GgmlDType)>> = BTreeMap::new();
    for (of, tensor) in tensors {
        let tensor = tensor.to_dtype(DType::F32).unwrap();
        let width = *tensor.dims().last().unwrap();
        let kind = match tensor.rank() == 2 && width.is_multiple_of(kind.block_size()) {
            true => kind,
            false => GgmlDType::F32,
        };
        let mut stored = tensor.clone();
        if is_paired && of.contains("q_proj") {
            stored = paired(&stored, heads as usize);
        }
        if is_paired && of.contains("k_proj") {
            stored = paired(&stored, kv as usize);
        }
        if arch.starts_with("gemma") && of.ends_with("norm.weight") {
            stored = (stored + 1.0).unwrap();
        }
        // Rows are quantised one by one, in whatever order they are.
        let again = QTensor::quantize(&tensor, kind).unwrap();
        full.insert(of.clone(), again.dequantize(&Device::Cpu).unwrap());
        let known = name(&of, norms);
        // All experts of a layer are one tensor.
        if let Some((layer, expert)) = known.split_once(".ffn_experts.") {
            let (number, part) = expert.split_once('.').unwrap();
            let part = part.trim_end_matches("_proj.weight");
            let all = experts.entry(format!("{layer}.ffn_{part}_exps.weight"));
            let all: &mut BTreeMap<usize, _> = all.or_default();
            all.insert(number.parse().unwrap(), (stored, kind));
            continue;
        }
        out.push((known, QTensor::quantize(&stored, kind).unwrap()));
    }
    for (name, all) in experts {
        let kind = all[&0].1;
        let all: Vec<&Tensor> = all.values().map(|(stored, _)| stored).collect();
        let stacked = Tensor::stack(&all, 0).unwrap();
        out.push((name, QTensor::quantize(&stacked, kind).unwrap()));
    }
    out.sort_by(|(a, _), (b, _)| a.cmp(b));
    let fields: Vec<(&str, &Value)> = fields.iter().map(|(key, value)| (&**key, value)).collect();
    let out: Vec<(&str, &QTensor)> = out.iter().map(|(key, value)| (&**key, value)).collect();
    let mut file = File::create(root.path().join("model.gguf")).unwrap();
    gguf_file::write(&mut file, &fields, &out).unwrap();
    save(&full, root.path().join("model.safetensors")).unwrap();
    fs::write(root.path().join("config.json"), config.to_string()).unwrap();
    Pair { root }
}

/// A model of the fixtures.
pub(super) fn pair(case: &str, kind: GgmlDType) -> Pair {
    let config = fs::read(folder(case).join("config.json")).unwrap();
    let tensors = load(folder(case).join("model.safetensors"), &Device::Cpu).unwrap();
    write(serde_json::from_slice(&config).unwrap(), tensors, kind)
}

/// A Llama that is wide enough for blocks of 256.
pub(super) fn wide(kind: GgmlDType) -> Pair {
    let json = json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": 256, "intermediate_size": 256,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    let config = serde_json::from_value(json.clone()).unwrap();
    let shapes = models::parameter_shapes::<Decoder>(&config).unwrap();
    let tensors = shapes.into_iter().zip(1..).map(|((name, shape), seed)| {
        let tensor = lora_tests::fixed(shape, DType::F32, seed);
        (name, (tensor * 0.05).unwrap())
    });
    write(json, tensors.collect(), kind)
}

pub(super) fn ids() -> Tensor {
    let ids: Vec<i64> = (0..36).map(|i| (i * 7 + i * i) % 40).collect();
    Tensor::from_vec(ids, (2, 18), &Device::Cpu).unwrap()
}

/// Writes the file of a pair in two parts, and returns the first.
pub(super) fn in_parts(pair: &Pair) -> PathBuf {
    let mut file = File::open(pair.gguf()).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let mut names: Vec<&String> = content.tensor_infos.keys().collect();
    names.sort();
    let fields: Vec<(&str, &Value)> = content.metadata.iter().map(|(k, v)| (&**k, v)).collect();
    for part in 0..2 {
        let tensors: Vec<(&str, QTensor)> = (names.iter().enumerate())
            .filter(|(index, _)| index % 2 == part)
            .map(|(_, name)| {
                let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
                (name.as_str(), tensor)
            })
            .collect();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (*k, v)).collect();
        let path = format!("m-0000{}-of-00002.gguf", part + 1);
        let mut out = File::create(pair.root.path().join(path)).unwrap();
        let fields = if part == 0 { &fields[..] } else { &[] };
        gguf_file::write(&mut out, fields, &tensors).unwrap();
    }
    pair.root.path().join("m-00001-of-00002.gguf")
}
