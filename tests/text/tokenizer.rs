//! Tokens: transformers', for a tokenizer of each kind.

use super::{fixture, read, tokenizer};
use lora::data::Side;
use lora::text::Tokenizer;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
    pair: Pair,
    cut: Vec<u32>,
    cut_single: Vec<u32>,
    special: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    plain: Vec<u32>,
    decoded: String,
    all: String,
}

#[derive(Deserialize)]
struct Pair {
    ids: Vec<u32>,
    types: Vec<u32>,
}

#[test]
fn tokens_and_texts_are_those_of_transformers() {
    let expected: BTreeMap<String, Expected> = read("encodings.json");
    assert_eq!(expected.len(), 3);
    for (name, expected) in expected {
        let tokenizer = tokenizer(&name);
        for case in &expected.cases {
            let what = format!("{name}: {:?}", case.text);
            let ids = tokenizer.encode(&case.text).unwrap().ids;
            assert_eq!(ids, case.ids, "{what}");
            let plain = tokenizer.encode_plain(&case.text).unwrap().ids;
            assert_eq!(plain, case.plain, "{what}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), case.decoded, "{what}");
            assert_eq!(tokenizer.decode_all(&ids).unwrap(), case.all, "{what}");
        }
        let batch = tokenizer.encode_batch(expected.cases.iter().map(|case| case.text.as_str()));
        for (encoding, case) in batch.unwrap().iter().zip(&expected.cases) {
            assert_eq!(encoding.ids, case.ids, "{name}");
        }
        let second = "jumps over the lazy dog, and reads the text";
        let pair = tokenizer.encode(("The quick brown fox", second)).unwrap();
        assert_eq!(pair.ids, expected.pair.ids, "{name}");
        assert_eq!(pair.types, expected.pair.types, "{name}");
        let special: BTreeMap<String, String> = tokenizer
            .special_tokens()
            .map(|(name, token)| (name.into(), token.into()))
            .collect();
        assert_eq!(special, expected.special, "{name}");

        let short = tokenizer.truncate_to(7).unwrap();
        let cut = short.encode(("The quick brown fox", "jumps over the lazy dog"));
        assert_eq!(cut.unwrap().ids, expected.cut, "{name}");
        let cut = short.encode("The quick brown fox jumps over it").unwrap();
        assert_eq!(cut.ids, expected.cut_single, "{name}");
    }
}

#[test]
fn tokens_know_their_bytes() {
    let text = "naïve fox";
    let encoding = tokenizer("wordpiece").encode(text).unwrap();
    let words: Vec<&str> = encoding
        .bytes
        .iter()
        .map(|bytes| &text[bytes.clone()])
        .collect();
    assert_eq!(words, ["", "naïve", "fox", ""]);
}

#[test]
fn the_files_beside_say_what_the_model_expects() {
    let bytelevel = tokenizer("bytelevel");
    assert_eq!(
        (bytelevel.eos(), bytelevel.bos(), bytelevel.pad()),
        (Some(2), None, 0)
    );
    assert_eq!(bytelevel.id("<|im_start|>"), Some(1));
    assert_eq!(bytelevel.token(2).as_deref(), Some("<|im_end|>"));
    assert_eq!(
        (bytelevel.longest(), bytelevel.padding_side()),
        (Some(64), Side::Right)
    );
    let metaspace = tokenizer("metaspace");
    assert_eq!(
        (metaspace.longest(), metaspace.padding_side()),
        (None, Side::Left)
    );
    assert_eq!(metaspace.pad(), metaspace.eos().unwrap());

    let wordpiece = tokenizer("wordpiece").truncate_to_model().unwrap();
    let long = "the fox ".repeat(20);
    assert_eq!(wordpiece.encode(&long).unwrap().ids.len(), 12);
    let folder = copy("wordpiece");
    fs::write(
        folder.path().join("sentence_bert_config.json"),
        r#"{"max_seq_length": 9}"#,
    )
    .unwrap();
    let shorter = Tokenizer::from_directory(folder.path()).unwrap();
    let shorter = shorter.truncate_to_model().unwrap();
    assert_eq!(shorter.encode(&long).unwrap().ids.len(), 9);
}

/// A tokenizer's folder, to be changed.
pub(super) fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn change(folder: &Path, file: &str, from: &str, to: &str) {
    let path = folder.join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn settings_beside_change_what_is_added() {
    let folder = copy("metaspace");
    change(
        folder.path(),
        "tokenizer_config.json",
        r#""bos_token""#,
        r#""add_bos_token":false,"add_eos_token":true,"extra_special_tokens":["<call>"],"bos_token""#,
    );
    let tokenizer = Tokenizer::from_directory(folder.path()).unwrap();
    let ids = tokenizer.encode("fox<call>").unwrap().ids;
    let call = tokenizer.id("<call>").unwrap();
    assert_eq!(call as usize, tokenizer.vocabulary_size() - 1);
    assert_eq!(ids[ids.len() - 2..], [call, 2]);
    assert_ne!(ids[0], 1);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "fox");
}

#[test]
fn errors_name_the_file_and_the_fix() {
    let folder = copy("bytelevel");
    let path = folder.path().display().to_string();
    let load = || {
        Tokenizer::from_directory(folder.path())
            .unwrap_err()
            .to_string()
    };
    change(
        folder.path(),
        "tokenizer_config.json",
        "null",
        r#"null,"padding_side":"up""#,
    );
    assert_eq!(
        load(),
        format!(
            "{path}/tokenizer_config.json: `padding_side` is \"up\": `left` or `right` is expected"
        )
    );
    change(folder.path(), "tokenizer.json", "BPE", "XYZ");
    let error = load();
    assert!(
        error.starts_with(&format!("{path}/tokenizer.json: is no tokenizer: ")),
        "{error}"
    );
    fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    let error = load();
    assert!(
        error.contains("tokenizer.json: is not valid JSON"),
        "{error}"
    );
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let error = load();
    assert!(
        error.starts_with(&format!("{path}/tokenizer.json: is missing: save")),
        "{error}"
    );

    let metaspace = tokenizer("metaspace");
    let error = metaspace
        .clone()
        .truncate_to_model()
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("call truncate_to with a length"), "{error}");
    let error = metaspace.truncate_to(0).unwrap_err().to_string();
    assert_eq!(
        error,
        "the text: 1 special tokens are added, more than the 0 that a text may have: call truncate_to with a \
         larger length"
    );
    let two = tokenizer("wordpiece").truncate_to(2).unwrap();
    assert_eq!(two.encode("fox").unwrap().ids, [2, 3]);
    let error = two.encode(("fox", "dog")).unwrap_err().to_string();
    assert!(
        error.starts_with("the text: 3 special tokens are added"),
        "{error}"
    );
}
