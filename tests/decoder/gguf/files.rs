//! Files in parts, and files with mistakes.

use super::support::{ids, in_parts, wide};
use candle_core::DType;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{self, Value};
use lora::models::decoder::from_gguf;
use lora::models::{self, Options};
use lora_tests::assert_close;
use std::fs::{self, File};
use std::path::PathBuf;

#[test]
fn parts_are_one_model() {
    let pair = wide(GgmlDType::Q4_0);
    let expected = pair.quantised().forward(&ids(), None).unwrap();
    let first = in_parts(&pair);
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
    check("llama.block_count", None, "`llama.block_count` is missing");
    // A model that the file cannot hold is not built.
    check(
        "llama.block_count",
        Some(Value::U32(1 << 20)),
        "`llama.block_count` is 1048576, more than the 0 tensors of the file",
    );
    check(
        "llama.expert_count",
        Some(Value::U32(1 << 9)),
        "`llama.expert_count` is 512, `blk.0.ffn_gate_exps.weight` holds 0",
    );
    check(
        "general.type",
        Some(name("adapter")),
        "`general.type` is adapter",
    );
}
