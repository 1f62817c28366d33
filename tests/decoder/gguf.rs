//! Decoders in GGUF files, against the same models with dequantised weights.

use super::{folder, io};
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::safetensors::{load, save};
use candle_core::{DType, Device, Tensor};
use lora::layers::GGML_TYPES;
use lora::models::decoder::{Decoder, from_gguf};
use lora::models::{self, Options};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::assert_close;
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A file, and the directory of the model with its dequantised weights.
struct Pair {
    root: TempDir,
}

impl Pair {
    fn gguf(&self) -> PathBuf {
        self.root.path().join("model.gguf")
    }

    fn quantised(&self) -> Decoder {
        let auto = models::auto(self.gguf(), &Options::new());
        let auto = auto.unwrap_or_else(|error| panic!("{error}"));
        auto.into_decoder().unwrap().model
    }

    fn full(&self) -> Decoder {
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
fn write(mut config: Json, tensors: HashMap<String, Tensor>, kind: GgmlDType) -> Pair {
    let root = tempfile::tempdir().unwrap();
    let arch = match config["model_type"].as_str().unwrap() {
        "mistral" => "llama",
        "gemma3_text" => "gemma3",
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
        let stored = QTensor::quantize(&stored, kind).unwrap();
        // Rows are quantised one by one, in whatever order they are.
        let again = QTensor::quantize(&tensor, kind).unwrap();
        full.insert(of.clone(), again.dequantize(&Device::Cpu).unwrap());
        out.push((name(&of, norms), stored));
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
fn pair(case: &str, kind: GgmlDType) -> Pair {
    let config = fs::read(folder(case).join("config.json")).unwrap();
    let tensors = load(folder(case).join("model.safetensors"), &Device::Cpu).unwrap();
    write(serde_json::from_slice(&config).unwrap(), tensors, kind)
}

/// Each family, with its settings.
const FAMILIES: [&str; 16] = [
    "llama_linear",
    "llama_llama3",
    "smollm2",
    "mistral_full",
    "mistral_window",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_scaled",
    "phi3_partial",
    "phi3_longrope",
    "olmo2",
    "granite",
];

#[test]
fn each_family_computes_what_its_dequantised_weights_do() {
    for case in FAMILIES {
        for kind in [GgmlDType::F32, GgmlDType::Q8_0] {
            let (pair, io) = (pair(case, kind), io(case));
            let (quantised, full) = (pair.quantised(), pair.full());
            assert_eq!(quantised.config().ropes.len(), full.config().ropes.len());
            let expected = full.forward(&io["ids"], None).unwrap();
            let what = format!("{case}, {kind:?}");
            let logits = quantised.forward(&io["ids"], None).unwrap();
            assert_close(&what, &logits, &expected, 1e-4);
        }
    }
}

/// A Llama that is wide enough for blocks of 256.
fn wide(kind: GgmlDType) -> Pair {
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

fn ids() -> Tensor {
    let ids: Vec<i64> = (0..36).map(|i| (i * 7 + i * i) % 40).collect();
    Tensor::from_vec(ids, (2, 18), &Device::Cpu).unwrap()
}

#[test]
fn each_type_stays_in_its_blocks() {
    for kind in GGML_TYPES {
        if kind == GgmlDType::Q8_1 {
            continue; // inputs only: no file holds a weight in it
        }
        let pair = wide(kind);
        let (quantised, full) = (pair.quantised(), pair.full());
        let expected = full.forward(&ids(), None).unwrap();
        let logits = quantised.forward(&ids(), None).unwrap();
        assert_close(&format!("{kind:?}"), &logits, &expected, 1e-4);
        match quantised.lm_head().unwrap().weight() {
            QMatMul::QTensor(weight) => assert_eq!(weight.dtype(), kind),
            _ => assert_eq!(kind, GgmlDType::F32),
        }
        let loss = |model: &Decoder| {
            let loss = model.loss(&ids(), None, &ids()).unwrap();
            loss.to_scalar::<f32>().unwrap()
        };
        let (loss, expected) = (loss(&quantised), loss(&full));
        assert!(
            (loss - expected).abs() < 1e-4,
            "{kind:?}: {loss} {expected}"
        );
    }
}

/// The loss over a quantised head gives the gradients that the dequantised head gives.
#[test]
fn trains_as_on_the_dequantised_weights() {
    let pair = wide(GgmlDType::Q4_1);
    let config = LoraConfig::new(4).seed(3);
    let grads = |model: &Decoder| {
        let model = model.to_lora(&config).unwrap();
        lora_tests::fill_adapters(&model);
        let loss = model.loss(&ids(), None, &ids()).unwrap();
        let grads = model.backward(&loss).unwrap();
        let vars = model.trainable_vars();
        let grads = vars
            .iter()
            .map(|var| grads.get(var).unwrap().flatten_all().unwrap());
        Tensor::cat(&grads.collect::<Vec<_>>(), 0).unwrap()
    };
    let (quantised, full) = (grads(&pair.quantised()), grads(&pair.full()));
    assert_close("gradients", &quantised, &full, 1e-4);
}

/// Adapters that PEFT made for the model in transformers' order of rows and names.
#[test]
fn adapters_of_peft_fit() {
    for case in ["llama_llama3", "phi3_partial", "gemma2"] {
        let (pair, io) = (pair(case, GgmlDType::Q8_0), io(case));
        let run = |model: Decoder| {
            let adapter = folder("peft").join(case).join("adapter");
            let model = model.with_adapter(adapter).unwrap();
            model.forward(&io["ids"], None).unwrap()
        };
        assert_close(case, &run(pair.quantised()), &run(pair.full()), 1e-4);
    }
    // In full precision these are PEFT's own numbers.
    let (pair, io) = (pair("llama_llama3", GgmlDType::F32), io("llama_llama3"));
    let case = folder("peft").join("llama_llama3");
    let model = pair.quantised().with_adapter(case.join("adapter")).unwrap();
    let logits = model.forward(&io["ids"], Some(&io["mask"])).unwrap();
    let expected = load(case.join("io.safetensors"), &Device::Cpu).unwrap();
    let first = |xs: &Tensor| xs.get(0).unwrap().to_dtype(DType::F32).unwrap();
    assert_close("PEFT", &first(&logits), &first(&expected["logits"]), 1e-5);
}

/// A merged model keeps its type, and one that is converted back keeps the very blocks.
#[test]
fn goes_back_to_its_blocks() {
    let model = wide(GgmlDType::Q4K).quantised();
    let expected = model.forward(&ids(), None).unwrap();
    let mut adapted = model.to_lora(&LoraConfig::new(2)).unwrap();
    let base = adapted.to_base().unwrap();
    assert_close("base", &base.forward(&ids(), None).unwrap(), &expected, 0.0);
    lora_tests::fill_adapters(&adapted);
    adapted.merge().unwrap();
    adapted.unmerge().unwrap();
    let adapted = adapted.disabled().unwrap();
    assert_close(
        "unmerged",
        &adapted.forward(&ids(), None).unwrap(),
        &expected,
        1e-6,
    );
}

#[test]
fn parts_are_one_model() {
    let pair = wide(GgmlDType::Q4_0);
    let expected = pair.quantised().forward(&ids(), None).unwrap();
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
    let first = pair.root.path().join("m-00001-of-00002.gguf");
    let model = from_gguf(&first, &Options::new()).unwrap().model;
    assert_close(
        "parts",
        &model.forward(&ids(), None).unwrap(),
        &expected,
        0.0,
    );
    let second = pair.root.path().join("m-00002-of-00002.gguf");
    let error = from_gguf(&second, &Options::new()).unwrap_err().to_string();
    assert!(error.contains("is part 2 of 2: name the first"), "{error}");
    fs::remove_file(&second).unwrap();
    let error = from_gguf(&first, &Options::new()).unwrap_err().to_string();
    assert!(error.contains("m-00002-of-00002.gguf"), "{error}");
}

#[test]
fn what_is_wrong_is_named() {
    let pair = wide(GgmlDType::Q4_0);
    let error = |path: PathBuf, options: Options| {
        let error = models::auto(path, &options).unwrap_err();
        error.to_string()
    };
    let dtype = error(pair.gguf(), Options::new().dtype(DType::BF16));
    assert!(dtype.contains("with quantised weights, such as"), "{dtype}");
    let classes = error(pair.gguf(), Options::new().num_classes(3));
    assert!(classes.contains("`num_classes` is set"), "{classes}");

    let bytes = fs::read(pair.gguf()).unwrap();
    let cut = pair.root.path().join("cut.gguf");
    fs::write(&cut, &bytes[..bytes.len() - 4096]).unwrap();
    let problem = error(cut.clone(), Options::new());
    assert!(problem.contains("ends outside the file"), "{problem}");

    let mut file = File::open(pair.gguf()).unwrap();
    let mut content = gguf_file::Content::read(&mut file).unwrap();
    let name = |text: &str| Value::String(text.into());
    let metadata = &mut content.metadata;
    let mut check = |key: &str, value: Option<Value>, expected: &str| {
        let before = match value {
            Some(value) => metadata.insert(key.into(), value),
            None => metadata.remove(key),
        };
        let fields: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (&**k, v)).collect();
        gguf_file::write(&mut File::create(&cut).unwrap(), &fields, &[]).unwrap();
        let problem = error(cut.clone(), Options::new());
        assert!(problem.contains(expected), "{expected}: {problem}");
        match before {
            Some(before) => metadata.insert(key.into(), before),
            None => metadata.remove(key),
        };
    };
    check(
        "general.architecture",
        Some(name("rwkv6")),
        "\"rwkv6\": those read are llama",
    );
    check(
        "llama.embedding_length",
        None,
        "`llama.embedding_length` is missing",
    );
    check("llama.block_count", None, "`token_embd.weight` is missing");
    check(
        "llama.expert_count",
        Some(Value::U32(8)),
        "mixtures of experts",
    );
    check(
        "general.type",
        Some(name("adapter")),
        "`general.type` is adapter",
    );
}

/// Each tensor of the merged file is the sum of its dequantised values and the update, rounded once to its
/// type.
fn assert_rounded_once(pair: &Pair, adapter: &Path, merged: &Path) {
    let device = &Device::Cpu;
    let read = |path: &Path| {
        let mut file = File::open(path).unwrap();
        let content = gguf_file::Content::read(&mut file).unwrap();
        let names: Vec<String> = content.tensor_infos.keys().cloned().collect();
        let tensor = |name: String| {
            let tensor = content.tensor(&mut file, &name, device).unwrap();
            (name, tensor)
        };
        let tensors: HashMap<String, QTensor> = names.into_iter().map(tensor).collect();
        (content.metadata, tensors)
    };
    let (metadata, base) = read(&pair.gguf());
    let full = base.iter().map(|(name, tensor)| {
        let values = tensor.dequantize(device).unwrap();
        (
            name.as_str(),
            QTensor::quantize(&values, GgmlDType::F32).unwrap(),
        )
    });
    let full: Vec<(&str, QTensor)> = full.collect();
    let tensors: Vec<(&str, &QTensor)> = full.iter().map(|(name, t)| (*name, t)).collect();
    let fields: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (&**k, v)).collect();
    let wide = pair.root.path().join("wide.gguf");
    gguf_file::write(&mut File::create(&wide).unwrap(), &fields, &tensors).unwrap();
    let sums = pair.root.path().join("sums.gguf");
    lora::peft::merge_gguf(&wide, adapter, &sums).unwrap();
    let ((_, sums), (_, merged)) = (read(&sums), read(merged));
    for (name, tensor) in &merged {
        let sum = sums[name].dequantize(device).unwrap();
        let expected = QTensor::quantize(&sum, tensor.dtype()).unwrap();
        assert_eq!(tensor.dtype(), base[name].dtype(), "{name}");
        let (ours, expected) = (tensor.dequantize(device), expected.dequantize(device));
        assert_close(name, &ours.unwrap(), &expected.unwrap(), 1e-6);
    }
}

/// The merged file holds what the adapter makes of the dequantised weights, in the types of the base.
#[test]
fn an_adapter_is_merged_into_a_file() {
    for (case, kind) in [
        ("llama_llama3", GgmlDType::F32),
        ("phi3_partial", GgmlDType::F32),
        ("phi3_partial", GgmlDType::Q8_0),
    ] {
        let (pair, io) = (pair(case, kind), io(case));
        let adapter = folder("peft").join(case).join("adapter");
        let out = pair.root.path().join("merged.gguf");
        let report = lora::peft::merge_gguf(pair.gguf(), &adapter, &out).unwrap();
        assert!(!report.layers.is_empty());
        let most = if kind == GgmlDType::F32 { 0.0 } else { 0.01 };
        for (name, error) in &report.layers {
            assert!(*error <= most, "{case}, {name}: {error}");
        }
        let merged = from_gguf(&out, &Options::new()).unwrap().model;
        let merged = merged.forward(&io["ids"], None).unwrap();
        let adapted = pair.full().with_adapter(&adapter).unwrap();
        let expected = adapted.forward(&io["ids"], None).unwrap();
        match kind {
            GgmlDType::F32 => assert_close(case, &merged, &expected, 1e-5),
            _ => assert_rounded_once(&pair, &adapter, &out),
        }
        assert_eq!(
            fs::metadata(&out).unwrap().len(),
            fs::metadata(pair.gguf()).unwrap().len()
        );
    }
    let pair = wide(GgmlDType::Q4_0);
    let adapter = folder("peft").join("llama_llama3").join("adapter");
    let out = pair.root.path().join("merged.gguf");
    let error = lora::peft::merge_gguf(pair.gguf(), adapter, &out).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("of shape [256, 256], the adapter's is"),
        "{error}"
    );
    assert!(!out.exists());
}
