use crate::models::{adapt, arg, bard, bert, repository, write_lines};
use crate::{lora, object, text};
use ::lora::data::{Pad, Record, Sequence, SequenceOptions, sequences};
use ::lora::metrics::{F1, accuracy};
use ::lora::models::decoder::LoraDecoder;
use ::lora::models::encoder::{Inputs, LoraEncoder};
use ::lora::models::{self, Options};
use ::lora::text::Tokenizer;
use ::lora::{LoraConfig, LoraModel, LoraModule};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A figure of the result.
fn figure(told: &Value, column: &str, name: &str) -> f64 {
    let found = told["results"][column][name].as_f64();
    found.unwrap_or_else(|| panic!("{column}, {name}: {told}"))
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "{a} {b}");
}

fn refused(args: &[&str], problem: &str) {
    let output = lora(["eval"].iter().chain(args).copied()).assert().code(1);
    let error = text(&output.get_output().stderr);
    assert!(error.contains(problem), "{error}");
}

#[test]
fn losses_of_texts_are_those_of_the_library() {
    let dir = tempfile::tempdir().unwrap();
    let created = models::auto(bard(), &Options::new())
        .unwrap()
        .into_decoder()
        .unwrap();
    let adapter = dir.path().join("adapter");
    let config = LoraConfig::new(2).target_modules(["q_proj", "down_proj"]);
    let tuned = adapt(&created.model, &config, 1, &adapter);
    let data = write_lines(
        &dir.path().join("data.jsonl"),
        &[
            json!({"prompt": "My lord, ", "completion": "the king is here."}),
            json!({"prompt": "What news?", "completion": " None, my lord."}),
            json!({"prompt": "", "completion": "O"}),
        ],
    );
    let tokenizer = Tokenizer::from_directory(bard()).unwrap();
    let records: Vec<Record> = ::lora::data::read_jsonl(&data).unwrap();
    let all = sequences(&tokenizer, &records, &SequenceOptions::new(1024)).unwrap();
    // One by one, weighted by the tokens.
    let loss = |model: &LoraDecoder| {
        let (mut sum, mut tokens) = (0.0, 0);
        for one in &all {
            let batch = Pad::new(0).sequences(&[one], &Device::Cpu).unwrap();
            let loss = model.loss(&batch.ids, None, &batch.labels).unwrap();
            sum += f64::from(loss.to_scalar::<f32>().unwrap()) * one.learned() as f64;
            tokens += one.learned();
        }
        sum / tokens as f64
    };
    let mut base = created.model.to_frozen().unwrap();
    base.eval();
    let (base, tuned) = (loss(&base), loss(&tuned));
    let bard = bard();
    let args = [
        "eval",
        "--model",
        arg(bard),
        "--adapter",
        arg(&adapter),
        "--data",
        arg(&data),
    ];
    let told = object(lora(args.into_iter().chain(["--json", "--batch", "2"])));
    close(figure(&told, "base", "loss"), base);
    close(figure(&told, "base", "perplexity"), base.exp());
    for column in ["adapter", "merged"] {
        close(figure(&told, column, "loss"), tuned);
    }
    assert!((base - tuned).abs() > 0.1);
    let tokens: usize = all.iter().map(Sequence::learned).sum();
    assert_eq!(told["on"], json!(format!("2 texts, {tokens} tokens")));

    let output = lora(args.into_iter().chain(["--which", "base,merged"]))
        .assert()
        .success();
    let shown = text(&output.get_output().stdout);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(
        lines[2].split_whitespace().collect::<Vec<_>>(),
        ["base", "merged"]
    );
    let cells: Vec<&str> = lines[3].split_whitespace().collect();
    assert_eq!(cells[..2], ["loss", &format!("{base:.4}")]);
    assert!(lines[4].starts_with("perplexity  "), "{shown}");

    // A file that is no JSONL is one text, of passages.
    let passages = dir.path().join("text.txt");
    fs::write(&passages, "My lord, the king is here.").unwrap();
    let halves = ["My lord, the ", "king is here."].map(|text| json!({"text": text}));
    let halves = write_lines(&dir.path().join("halves.jsonl"), &halves);
    let of = |file: &Path, length: &'static str| {
        let args = [
            "eval",
            "--model",
            arg(bard),
            "--data",
            arg(file),
            "--max-length",
            length,
            "--json",
        ];
        object(lora(args))
    };
    // Of records each ends with a token for that, which is cut here.
    let (whole, cut) = (of(&passages, "13"), of(&halves, "13"));
    assert_eq!(whole["on"], json!("2 texts, 24 tokens"));
    assert_eq!(whole["results"], cut["results"]);

    // Two adapters: each, together, merged.
    let other = dir.path().join("other");
    adapt(&created.model, &config, 2, &other);
    let (a, b) = (format!("a={}", arg(&adapter)), format!("b={}", arg(&other)));
    let args = [
        "eval",
        "--model",
        arg(bard),
        "--adapter",
        &a,
        "--adapter",
        &b,
        "--data",
        arg(&data),
        "--json",
    ];
    let told = object(lora(args));
    let columns: Vec<&String> = told["results"].as_object().unwrap().keys().collect();
    assert_eq!(columns, ["base", "a", "b", "together", "merged"]);
    close(figure(&told, "a", "loss"), tuned);
    close(
        figure(&told, "together", "loss"),
        figure(&told, "merged", "loss"),
    );

    let model = ["--model", arg(bard), "--data", arg(&data)];
    refused(
        &[&model[..], &["--which", "merged"]].concat(),
        "--which asks for an adapter, and there is none: say --adapter DIR",
    );
    refused(
        &["--model", arg(bard), "--data", "none.jsonl"],
        "cannot use --data none.jsonl",
    );
    let broken = write_lines(
        &dir.path().join("broken.jsonl"),
        &[json!({"text": "x"}), json!({"txt": "x"})],
    );
    refused(
        &["--model", arg(bard), "--data", arg(&broken)],
        "line 2: has `txt`: `text`, or ",
    );
    let labelled = write_lines(&broken, &[json!({"text": "x", "label": "a"})]);
    refused(
        &["--model", arg(bard), "--data", arg(&labelled)],
        "holds texts with labels, for an encoder with a head, --model ",
    );
}

/// The logits of texts, one by one.
fn logits(model: &LoraEncoder, dir: &Path, texts: &[&str]) -> Vec<Vec<f32>> {
    let tokenizer = Tokenizer::from_directory(dir).unwrap();
    let tokenizer = tokenizer.truncate_to_model().unwrap();
    let of = |text: &&str| {
        let ids = tokenizer.encode(*text).unwrap().ids;
        let ids = Tensor::new(vec![ids], &Device::Cpu).unwrap();
        let logits = model.forward(&Inputs::new(&ids), false).unwrap();
        logits.to_vec2::<f32>().unwrap().remove(0)
    };
    texts.iter().map(of).collect()
}

#[test]
fn classes_are_counted_as_the_library_counts() {
    let dir = tempfile::tempdir().unwrap();
    let base_dir = dir.path().join("base");
    let base = bert(&base_dir, &["ham", "spam"]);
    let adapter = dir.path().join("adapter");
    let config = LoraConfig::new(2).modules_to_save(["classifier"]);
    let tuned = adapt(&base, &config, 5, &adapter);
    let texts = [
        "the cat sat",
        "buy the dog now",
        "a mat",
        "on",
        "the the",
        "sat on a cat",
    ];
    let labels = ["ham", "spam", "ham", "spam", "spam", "ham"];
    let lines: Vec<Value> = texts
        .iter()
        .zip(labels)
        .map(|(text, label)| json!({"text": text, "label": label}))
        .collect();
    let data = write_lines(&dir.path().join("data.jsonl"), &lines);
    let numbers: Vec<u32> = labels
        .iter()
        .map(|label| u32::from(*label == "spam"))
        .collect();
    let args = [
        "eval",
        "--model",
        arg(&base_dir),
        "--adapter",
        arg(&adapter),
        "--data",
        arg(&data),
        "--json",
    ];
    let told = object(lora(args));
    let mut frozen = base.to_frozen().unwrap();
    frozen.eval();
    for (column, model) in [("base", &frozen), ("adapter", &tuned), ("merged", &tuned)] {
        let logits = logits(model, &base_dir, &texts);
        let found: Vec<u32> = logits
            .iter()
            .map(|row| u32::from(row[1] > row[0]))
            .collect();
        close(
            figure(&told, column, "accuracy"),
            accuracy(&found, &numbers).unwrap(),
        );
        close(
            figure(&told, column, "F1"),
            F1::macro_mean(&found, &numbers).unwrap().f1,
        );
        close(
            figure(&told, column, "F1 spam"),
            F1::of(&found, &numbers, &1).unwrap().f1,
        );
        let loss: f64 = logits
            .iter()
            .zip(&numbers)
            .map(|(row, &label)| {
                let row: Vec<f64> = row.iter().map(|&logit| logit.into()).collect();
                (row[0].exp() + row[1].exp()).ln() - row[label as usize]
            })
            .sum();
        close(figure(&told, column, "loss"), loss / 6.0);
    }
    // Numbers of classes, and what is none.
    let lines: Vec<Value> = texts
        .iter()
        .zip(&numbers)
        .map(|(text, label)| json!({"text": text, "label": label}))
        .collect();
    write_lines(&data, &lines);
    assert_eq!(object(lora(args))["results"], told["results"]);
    write_lines(&data, &[json!({"text": "x", "label": "eggs"})]);
    refused(
        &args[1..],
        "line 1: the label is eggs, the model's classes are ham, spam",
    );
}

#[test]
fn a_head_that_only_the_adapter_has_leaves_the_base_out() {
    let dir = tempfile::tempdir().unwrap();
    let base_dir = dir.path().join("base");
    bert(&base_dir, &[]);
    let options = Options::new()
        .task(models::Task::SequenceClassification)
        .num_classes(3);
    let base = models::auto(&base_dir, &options)
        .unwrap()
        .into_encoder()
        .unwrap()
        .model;
    let adapter = dir.path().join("adapter");
    let config = LoraConfig::new(2).modules_to_save(["classifier", "pooler"]);
    adapt(&base, &config, 5, &adapter);
    fs::write(adapter.join("classes.json"), "[\"a\", \"b\", \"c\"]").unwrap();
    let data = write_lines(
        &dir.path().join("data.jsonl"),
        &[json!({"text": "the cat", "label": "b"})],
    );
    let args = [
        "eval",
        "--model",
        arg(&base_dir),
        "--adapter",
        arg(&adapter),
        "--data",
        arg(&data),
    ];
    let told = object(lora(args.into_iter().chain(["--json"])));
    let columns: Vec<&String> = told["results"].as_object().unwrap().keys().collect();
    assert_eq!(columns, ["adapter", "merged"]);
    refused(
        &[&args[1..], &["--which", "base"]].concat(),
        "--which leaves nothing to measure: the base has no head for these classes",
    );
    refused(
        &["--model", arg(&base_dir), "--data", arg(&data)],
        "has no head for classes of texts, and no --adapter brings one",
    );
}

#[test]
fn pairs_are_found_or_correlate() {
    let dir = tempfile::tempdir().unwrap();
    let base_dir = dir.path().join("base");
    bert(&base_dir, &[]);
    // Each text finds itself.
    let pairs = ["the cat", "a dog sat", "on the mat"]
        .map(|text| json!({"anchor": text, "positive": text}));
    let data = write_lines(&dir.path().join("pairs.jsonl"), &pairs);
    let args = [
        "eval",
        "--model",
        arg(&base_dir),
        "--data",
        arg(&data),
        "--json",
    ];
    let told = object(lora(args));
    assert_eq!(told["on"], json!("3 queries among 3 texts"));
    for name in ["accuracy@1", "recall@10", "MRR@10", "NDCG@10"] {
        close(figure(&told, "base", name), 1.0);
    }
    // Two texts that are the same are as alike as can be.
    let pairs = [
        json!({"sentence1": "the cat", "sentence2": "the cat", "score": 1.0}),
        json!({"sentence1": "the cat", "sentence2": "a dog sat on the mat", "score": 0.0}),
    ];
    write_lines(&data, &pairs);
    let told = object(lora(args));
    close(figure(&told, "base", "Pearson"), 1.0);
    close(figure(&told, "base", "Spearman"), 1.0);
    write_lines(
        &data,
        &[pairs[0].clone(), json!({"anchor": "a", "positive": "b"})],
    );
    refused(
        &args[1..],
        "line 2 has no score, others have: give all or none",
    );
}

#[test]
fn a_folder_of_images_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    for class in ["3", "7"] {
        let folder = dir.path().join("digits").join(class);
        fs::create_dir_all(&folder).unwrap();
        let sheet =
            image::open(repository("examples/data/mnist").join(format!("{class}.png"))).unwrap();
        for tile in 0..3 {
            let tile = sheet.crop_imm(28 * tile, 0, 28, 28);
            tile.save(folder.join(format!("{}.png", tile.width() + tile.height())))
                .unwrap();
            tile.save(folder.join("again.png")).unwrap();
        }
    }
    let digits = repository("examples/data/digits.safetensors");
    let data = dir.path().join("digits");
    let args = [
        "eval",
        "--model",
        arg(&digits),
        "--data",
        arg(&data),
        "--json",
    ];
    let told = object(lora(args));
    // The model was trained on these.
    assert_eq!(figure(&told, "base", "accuracy"), 1.0);
    assert_eq!(told["on"], json!("4 images of 10 classes"));
}
