//! The tokenizer in a GGUF file's metadata.

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::{D, Device};
use lora::models::generate::Settings;
use lora::models::{self, Options};
use lora::text::{Tokenizer, generate};
use lora_tests::assert_close;
use std::fs::File;
use std::path::Path;

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
        ("llama", "default", "of the kind \"llama\""),
        ("gpt2", "tekken", "cuts texts as \"tekken\" does"),
    ] {
        write(&path, kind, pre);
        let error = Tokenizer::from_gguf(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
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
