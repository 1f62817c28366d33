//! The tokenizer in a GGUF file's metadata.

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{D, DType, Device, Tensor};
use lora::models::generate::Settings;
use lora::models::{self, Options};
use lora::peft::merge_checkpoint;
use lora::text::{Tokenizer, generate};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::assert_close;
use serde_json::{Value as Json, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Writes a file with a tokenizer of this kind, which cuts texts as `pre` says.
fn write(path: &Path, kind: &str, pre: &str) {
    let text = |text: &str| Value::String(text.into());
    let texts = |list: &[&str]| Value::Array(list.iter().map(|of| text(of)).collect());
    let tokens = ["<s>", "a", "b", "ab", "Ġ", "Ġab", "1", "2", "12", "</s>"];
    let mut types = vec![Value::I32(1); tokens.len()];
    types[0] = Value::I32(3);
    types[9] = Value::I32(3);
    let fields = [
        ("general.architecture", text("llama")),
        ("tokenizer.ggml.model", text(kind)),
        ("tokenizer.ggml.pre", text(pre)),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.token_type", Value::Array(types)),
        ("tokenizer.ggml.merges", texts(&["a b", "Ġ ab", "1 2"])),
        ("tokenizer.ggml.bos_token_id", Value::U32(0)),
        ("tokenizer.ggml.eos_token_id", Value::U32(9)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
    ];
    let fields: Vec<(&str, &Value)> = fields.iter().map(|(key, value)| (*key, value)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), &fields, &[]).unwrap();
}

#[test]
fn is_read_with_its_cuts_and_special_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let ids = |pre: &str| {
        write(&path, "gpt2", pre);
        let tokenizer = Tokenizer::from_gguf(&path).unwrap();
        let ids = tokenizer.encode("ab ab12</s>").unwrap().ids;
        assert_eq!(tokenizer.decode(&ids[1..ids.len() - 1]).unwrap(), "ab ab12");
        ids
    };
    assert_eq!(ids("gpt-2"), [0, 3, 5, 8, 9]);
    assert_eq!(ids("smollm"), [0, 3, 5, 6, 7, 9], "each digit is a piece");
    assert_eq!(ids("llama-bpe"), [0, 3, 5, 8, 9]);
    assert_eq!(ids("qwen2"), [0, 3, 5, 6, 7, 9]);
}

#[test]
fn other_kinds_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for (kind, pre, expected) in [
        ("bert", "default", "of the kind \"bert\""),
        ("gpt2", "tekken", "cuts texts as \"tekken\" does"),
    ] {
        write(&path, kind, pre);
        let error = Tokenizer::from_gguf(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

fn sentencepiece() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/text/sentencepiece")
}

/// Vocabularies of SentencePiece in GGUF files cut texts as transformers' tokenizers do: by score, with a space
/// in front for Llama and none for Gemma, and into bytes what has no token.
#[test]
fn sentencepiece_cuts_as_in_transformers() {
    let encodings = fs::read(sentencepiece().join("encodings.json")).unwrap();
    let encodings: Json = serde_json::from_slice(&encodings).unwrap();
    for (name, cases) in encodings.as_object().unwrap() {
        let path = sentencepiece().join(format!("{name}.gguf"));
        let tokenizer = Tokenizer::from_gguf(path).unwrap();
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids = tokenizer.encode_plain(text).unwrap().ids;
            assert_eq!(json!(ids), case["ids"], "{name}: {text:?}");
            assert_eq!(
                tokenizer.decode(&ids).unwrap(),
                case["decoded"],
                "{name}: {text:?}"
            );
            // Texts begin with the token that the file names.
            let first = tokenizer.encode(text).unwrap().ids[0];
            assert_eq!(Some(first), tokenizer.bos(), "{name}: {text:?}");
        }
    }
    let tokenizer = Tokenizer::from_gguf(sentencepiece().join("gemma.gguf")).unwrap();
    let special: Vec<(&str, &str)> = tokenizer.special_tokens().collect();
    let expected = [
        ("bos_token", "<bos>"),
        ("eos_token", "<eos>"),
        ("unk_token", "<unk>"),
    ];
    assert_eq!(special, expected);
}

/// What is written beside a merged model is the file's tokenizer.
#[test]
fn is_written_beside_a_merged_model() {
    let path = sentencepiece().join("llama.gguf");
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("model.gguf");
    let device = &Device::Cpu;
    let mut file = File::open(&path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let mut fields: Vec<(&str, Value)> = Vec::new();
    for (key, number) in [
        ("llama.embedding_length", 8),
        ("llama.block_count", 1),
        ("llama.feed_forward_length", 8),
        ("llama.attention.head_count", 2),
    ] {
        fields.push((key, Value::U32(number)));
    }
    let mut fields: Vec<(&str, &Value)> = fields.iter().map(|(k, v)| (*k, v)).collect();
    fields.extend(content.metadata.iter().map(|(k, v)| (k.as_str(), v)));
    let ones = |shape: &[usize]| {
        let ones = Tensor::ones(shape, DType::F32, device).unwrap();
        QTensor::quantize(&ones, GgmlDType::F32).unwrap()
    };
    let mut tensors = vec![
        ("token_embd.weight", ones(&[317, 8])),
        ("output_norm.weight", ones(&[8])),
    ];
    for name in [
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ] {
        let name: &str = format!("blk.0.{name}.weight").leak();
        tensors.push((name, ones(&[8, 8])));
    }
    for name in ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"] {
        tensors.push((name, ones(&[8])));
    }
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (*k, v)).collect();
    gguf_file::write(&mut File::create(&base).unwrap(), &fields, &tensors).unwrap();

    let model = models::auto(&base, &Options::new()).unwrap();
    let model = model.into_decoder().unwrap().model;
    let adapter = dir.path().join("adapter");
    let lora = model.to_lora(&LoraConfig::new(1)).unwrap();
    lora.save_adapter(&adapter).unwrap();
    let out = dir.path().join("merged");
    merge_checkpoint(&base, adapter, &out).unwrap();
    let (ours, theirs) = (
        Tokenizer::from_directory(&out).unwrap(),
        Tokenizer::from_gguf(&path).unwrap(),
    );
    for text in ["hello <s>world", " naïve"] {
        assert_eq!(ours.encode(text).unwrap(), theirs.encode(text).unwrap());
    }
    assert_eq!(ours.bos(), Some(1));
}

/// A real file: `tests/fixtures/smollm2/make.py` says where to get one, and holds what transformers makes
/// of it.
#[test]
#[ignore = "set LORA_SMOLLM2 to SmolLM2-135M-Instruct's GGUF file in Q4_1"]
fn real_smollm2_is_read_as_transformers_reads_it() {
    let path = std::env::var("LORA_SMOLLM2").expect("LORA_SMOLLM2, the file");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/smollm2/logits.safetensors");
    let expected = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let tokenizer = Tokenizer::from_gguf(&path).unwrap();
    let text = "The capital of France is Paris, and in 2024 it's naïve to ask.";
    let ids = tokenizer.encode(text).unwrap().ids;
    let as_transformers = expected["ids"].to_vec1::<i64>().unwrap();
    assert_eq!(
        ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(),
        as_transformers
    );

    let auto = models::auto(&path, &Options::new()).unwrap();
    let model = auto.into_decoder().unwrap().model;
    let ids = expected["ids"].unsqueeze(0).unwrap();
    let logits = model.forward(&ids, None).unwrap().get(0).unwrap();
    let columns = expected["logits"].dim(D::Minus1).unwrap();
    let part = logits.narrow(1, 0, columns).unwrap();
    assert_close("logits", &part, &expected["logits"], 1e-4);
    let best = logits.argmax(D::Minus1).unwrap().to_vec1::<u32>().unwrap();
    let best: Vec<i64> = best.into_iter().map(i64::from).collect();
    assert_eq!(best, expected["best"].to_vec1::<i64>().unwrap());

    let prompt = tokenizer.encode("The capital of France is").unwrap().ids;
    let settings = Settings::new().max_new_tokens(8);
    let mut written = String::new();
    for step in generate(&model, &tokenizer, &[prompt], &settings).unwrap() {
        written.extend(step.unwrap());
    }
    println!("The capital of France is{written}");
    assert!(written.contains("Paris"), "{written}");
}
