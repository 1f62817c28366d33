use crate::models::{adapt, arg, bert};
use crate::{lora, object, text};
use ::lora::models::encoder::{Inputs, LoraEncoder};
use ::lora::text::Tokenizer;
use ::lora::{LoraConfig, LoraModel, LoraModule};
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// The vectors of texts, one by one.
fn vectors(model: &LoraEncoder, dir: &Path, texts: &[&str]) -> Vec<Vec<f32>> {
    let tokenizer = Tokenizer::from_directory(dir)
        .unwrap()
        .truncate_to_model()
        .unwrap();
    let of = |text: &&str| {
        let ids = tokenizer.encode(*text).unwrap().ids;
        let ids = Tensor::new(vec![ids], &Device::Cpu).unwrap();
        let vectors = model.embed(&Inputs::new(&ids), false).unwrap();
        vectors.to_vec2::<f32>().unwrap().remove(0)
    };
    texts.iter().map(of).collect()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }
}

fn rows(stdout: &[u8]) -> Vec<Vec<f32>> {
    let row = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        serde_json::from_value(line["embedding"].clone()).unwrap()
    };
    text(stdout).lines().map(row).collect()
}

const TEXTS: [&str; 3] = ["the cat sat on the mat", "a dog", "the the"];

#[test]
fn vectors_are_the_librarys() {
    let dir = tempfile::tempdir().unwrap();
    let base_dir = dir.path().join("base");
    let base = bert(&base_dir, &[]);
    let adapter = dir.path().join("adapter");
    let tuned = adapt(
        &base,
        &LoraConfig::new(2).target_modules("all-linear"),
        3,
        &adapter,
    );
    let mut frozen = base.to_frozen().unwrap();
    frozen.eval();
    let (plain, tuned) = (
        vectors(&frozen, &base_dir, &TEXTS),
        vectors(&tuned, &base_dir, &TEXTS),
    );
    let model = ["embed", "--model", arg(&base_dir)];

    let output = lora(model.into_iter().chain(TEXTS)).assert().success();
    let found = rows(&output.get_output().stdout);
    found
        .iter()
        .zip(&plain)
        .for_each(|(found, expected)| assert_close(found, expected));

    // From a file, with an adapter, one long.
    let file = dir.path().join("texts.txt");
    fs::write(&file, TEXTS.join("\n")).unwrap();
    let args = [
        "--file",
        arg(&file),
        "--adapter",
        arg(&adapter),
        "--normalize",
        "--batch",
        "2",
    ];
    let output = lora(model.into_iter().chain(args)).assert().success();
    for (found, expected) in rows(&output.get_output().stdout).iter().zip(&tuned) {
        let length = expected
            .iter()
            .map(|value| value * value)
            .sum::<f32>()
            .sqrt();
        let expected: Vec<f32> = expected.iter().map(|value| value / length).collect();
        assert_close(found, &expected);
    }
    let differences = plain[0].iter().zip(&tuned[0]);
    assert!(differences.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) > 1e-2);

    // From the input; a prefix is a part of each text.
    let prefixed = vectors(&frozen, &base_dir, &["a dog sat"]);
    let mut command = lora(
        model
            .into_iter()
            .chain(["--file", "-", "--prefix", "a dog ", "--json"]),
    );
    command.write_stdin("sat\n");
    let told = object(command);
    let found: Vec<Vec<f32>> = serde_json::from_value(told["embeddings"].clone()).unwrap();
    assert_close(&found[0], &prefixed[0]);
    assert_eq!(told["width"], 16);
}

#[test]
fn files_are_written_whole_and_replace_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let base_dir = dir.path().join("base");
    let base = bert(&base_dir, &[]);
    let mut frozen = base.to_frozen().unwrap();
    frozen.eval();
    let plain = vectors(&frozen, &base_dir, &TEXTS);
    let output = dir.path().join("texts.safetensors");
    let args = [
        "embed",
        "--model",
        arg(&base_dir),
        TEXTS[0],
        TEXTS[1],
        TEXTS[2],
        "--output",
        arg(&output),
    ];
    let told = lora(args).assert().success();
    let shown = text(&told.get_output().stdout);
    assert_eq!(
        shown,
        format!("3 vectors of 16 values: {}\n", output.display())
    );
    let found = candle_core::safetensors::load(&output, &Device::Cpu).unwrap();
    let found: Vec<Vec<f32>> = found["embeddings"].to_vec2().unwrap();
    found
        .iter()
        .zip(&plain)
        .for_each(|(found, expected)| assert_close(found, expected));

    let before = fs::read(&output).unwrap();
    let refused = lora(args).assert().code(1);
    let error = text(&refused.get_output().stderr);
    let problem = format!(
        "{} is there already: name another place, or say --force to write over it",
        output.display()
    );
    assert!(error.contains(&problem), "{error}");
    assert_eq!(fs::read(&output).unwrap(), before);
    lora(args.into_iter().chain(["--force"])).assert().success();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);

    let lines = dir.path().join("texts.jsonl");
    lora([
        "embed",
        "--model",
        arg(&base_dir),
        TEXTS[1],
        "--output",
        arg(&lines),
    ])
    .assert()
    .success();
    assert_close(&rows(&fs::read(&lines).unwrap())[0], &plain[1]);
}

#[test]
fn what_cannot_be_done_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let bard = crate::models::bard();
    bert(dir.path(), &[]);
    for (args, problem) in [
        (
            vec!["--model", arg(dir.path())],
            "there is no text: give texts, or --file FILE",
        ),
        (
            vec!["--model", arg(dir.path()), "x", "--output", "x.csv"],
            "must end in .jsonl or .safetensors",
        ),
        (
            vec!["--model", arg(dir.path()), "x", "--output", "none/x.jsonl"],
            "there is no folder none",
        ),
        (
            vec!["--model", arg(bard), "x"],
            "encoders make vectors of texts",
        ),
        (
            vec!["--model", arg(dir.path()), "x", "--max-length", "1"],
            "--max-length is too small",
        ),
        (
            vec!["--model", arg(dir.path()), "--file", "none.jsonl"],
            "cannot use --file none.jsonl",
        ),
    ] {
        let output = lora(["embed"].into_iter().chain(args)).assert().code(1);
        let error = text(&output.get_output().stderr);
        assert!(error.contains(problem), "{problem}: {error}");
    }
}
