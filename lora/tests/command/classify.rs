use crate::models::{adapt, arg, bert, repository, write_json};
use crate::{lora, object, text};
use ::lora::LoraConfig;
use ::lora::images::{Dataset, Image, Input};
use ::lora::models::convnext::ConvNext;
use ::lora::models::encoder::Inputs;
use ::lora::models::{self, Architecture, Options, Task};
use ::lora::text::Tokenizer;
use candle_core::{Device, Module, Tensor};
use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// The shares of classes of logits.
fn shares(logits: &[f32]) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

fn assert_shares(result: &Value, classes: &[&str], logits: &[f32]) {
    for (class, expected) in classes.iter().zip(shares(logits)) {
        let found = result["shares"][class].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-5, "{class}: {result}");
    }
}

#[test]
fn texts_have_the_classes_of_the_adapters_head() {
    let dir = tempfile::tempdir().unwrap();
    let base_dir = dir.path().join("base");
    bert(&base_dir, &[]);
    let options = Options::new()
        .task(Task::SequenceClassification)
        .num_classes(3);
    let base = models::auto(&base_dir, &options)
        .unwrap()
        .into_encoder()
        .unwrap()
        .model;
    let adapter = dir.path().join("adapter");
    let config = LoraConfig::new(2).modules_to_save(["classifier", "pooler"]);
    let model = adapt(&base, &config, 5, &adapter);
    let classes = ["joy", "grief", "neither"];
    let texts = ["the cat sat on the mat", "a dog"];
    let tokenizer = Tokenizer::from_directory(&base_dir)
        .unwrap()
        .truncate_to_model()
        .unwrap();
    let logits = texts.map(|text| {
        let ids = tokenizer.encode(text).unwrap().ids;
        let ids = Tensor::new(vec![ids], &Device::Cpu).unwrap();
        let logits = model.forward(&Inputs::new(&ids), false).unwrap();
        logits.to_vec2::<f32>().unwrap().remove(0)
    });
    let args = [
        "classify",
        "--model",
        arg(&base_dir),
        "--adapter",
        arg(&adapter),
        texts[0],
        texts[1],
    ];
    // The head's size is in the adapter's file, the names are not.
    let told = object(lora(args.into_iter().chain(["--json"])));
    assert_eq!(told["classes"], json!(["LABEL_0", "LABEL_1", "LABEL_2"]));
    write_json(&adapter.join("classes.json"), &json!(classes));
    let told = object(lora(args.into_iter().chain(["--json"])));
    for (result, logits) in told["results"].as_array().unwrap().iter().zip(&logits) {
        assert_shares(result, &classes, logits);
    }
    let best = |logits: &[f32]| {
        let shares = shares(logits);
        let best = (0..3)
            .max_by(|&a, &b| shares[a].total_cmp(&shares[b]))
            .unwrap();
        (classes[best], 100.0 * shares[best])
    };
    let output = lora(args.into_iter().chain(["--top", "1"]))
        .assert()
        .success();
    let lines = texts.iter().zip(&logits).map(|(text, logits)| {
        let (class, percent) = best(logits);
        format!("{text:<22}  {class} {percent:.1} %\n")
    });
    assert_eq!(text(&output.get_output().stdout), lines.collect::<String>());

    write_json(&adapter.join("classes.json"), &json!(["joy", "grief"]));
    let output = lora(args).assert().code(1);
    let error = text(&output.get_output().stderr);
    assert!(error.contains("classifier"), "{error}");
    let output = lora(["classify", "--model", arg(&base_dir), "x"])
        .assert()
        .code(1);
    let error = text(&output.get_output().stderr);
    assert!(
        error.contains("has no head for classes of texts, and no --adapter brings one"),
        "{error}"
    );
}

#[test]
fn a_model_with_a_head_of_its_own_needs_no_adapter() {
    let dir = tempfile::tempdir().unwrap();
    bert(dir.path(), &["ham", "spam"]);
    let told = object(lora([
        "classify",
        "--model",
        arg(dir.path()),
        "the cat",
        "--json",
    ]));
    assert_eq!(told["classes"], json!(["ham", "spam"]));
}

/// Tiles of the repository's digits, as files.
fn digits(dir: &Path, classes: &[u32]) -> Vec<PathBuf> {
    let tile = |class: &u32| {
        let sheet = repository("examples/data/mnist").join(format!("{class}.png"));
        let path = dir.join(format!("{class}.png"));
        image::open(sheet)
            .unwrap()
            .crop_imm(56, 28, 28, 28)
            .save(&path)
            .unwrap();
        path
    };
    classes.iter().map(tile).collect()
}

fn convnext(options: &Options) -> ConvNext {
    let digits = repository("examples/data/digits.safetensors");
    let created = models::auto(digits, options).unwrap();
    created.into_convnext().unwrap().model
}

/// The logits of images, one by one.
fn logits(model: &impl Module, input: &Input, files: &[PathBuf]) -> Vec<Vec<f32>> {
    let of = |file: &PathBuf| {
        let mut images = Dataset::new(vec!["all".into()], input.size()).widened(input.channels());
        images.push(0, &Image::open(file).unwrap().fit(input.size()));
        let images = input
            .normalize(&images.batch(&[0]).unwrap().images)
            .unwrap();
        model
            .forward(&images)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap()
            .remove(0)
    };
    files.iter().map(of).collect()
}

#[test]
fn images_have_the_classes_of_the_model_or_of_the_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let model = repository("examples/data/digits.safetensors");
    let files = digits(dir.path(), &[0, 3, 7]);
    let images: Vec<&str> = files.iter().map(|file| arg(file)).collect();
    let args = |more: &[&'static str]| -> Vec<String> {
        let words = ["classify", "--model", arg(&model)]
            .into_iter()
            .chain(images.iter().copied());
        words
            .chain(more.iter().copied())
            .map(String::from)
            .collect()
    };
    let run = |args: &[String]| lora(args.iter().map(String::as_str));
    // It was trained on these.
    let output = run(&args(&["--top", "1"])).assert().success();
    let shown = text(&output.get_output().stdout);
    for (line, class) in shown.lines().zip(["0", "3", "7"]) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            (words[words.len() - 3], words[words.len() - 1]),
            (class, "%"),
            "{shown}"
        );
    }
    // A head for other classes, which the adapter brings.
    let adapter = dir.path().join("adapter");
    let options = Options::new().num_classes(2).fresh([ConvNext::CLASSIFIER]);
    let config = LoraConfig::new(2).modules_to_save([ConvNext::CLASSIFIER]);
    let tuned = adapt(&convnext(&options), &config, 2, &adapter);
    write_json(&adapter.join("classes.json"), &json!(["even", "odd"]));
    let input = Input::read(&model).unwrap();
    let expected = logits(&tuned, &input, &files);
    let mut with = args(&["--json", "--batch", "2", "--adapter"]);
    with.push(arg(&adapter).into());
    let told = object(run(&with));
    assert_eq!(told["classes"], json!(["even", "odd"]));
    for (result, logits) in told["results"].as_array().unwrap().iter().zip(&expected) {
        assert_shares(result, &["even", "odd"], logits);
    }
}

#[test]
fn an_adapter_may_bring_a_first_layer_for_colours() {
    let dir = tempfile::tempdir().unwrap();
    let model = repository("examples/data/digits.safetensors");
    let wide = convnext(&Options::new()).in_colour().unwrap();
    let adapter = dir.path().join("adapter");
    let config = LoraConfig::new(2).modules_to_save([ConvNext::FIRST_LAYER]);
    let tuned = adapt(&wide, &config, 2, &adapter);
    let photo = dir.path().join("photo.png");
    RgbImage::from_fn(40, 30, |x, y| Rgb([x as u8 * 6, y as u8 * 8, 99]))
        .save(&photo)
        .unwrap();
    let input = Input::read(&model).unwrap().in_colour();
    let expected = logits(&tuned, &input, std::slice::from_ref(&photo));
    let args = ["classify", "--model", arg(&model), arg(&photo)];
    let told = object(lora(args.into_iter().chain([
        "--adapter",
        arg(&adapter),
        "--json",
    ])));
    let classes: Vec<String> = (0..10).map(|class| class.to_string()).collect();
    let classes: Vec<&str> = classes.iter().map(String::as_str).collect();
    assert_shares(&told["results"][0], &classes, &expected[0]);
    // The base sees the brightness, and says so.
    let output = lora(args).assert().success();
    let note = text(&output.get_output().stderr);
    assert!(
        note.contains("is in colour, the model's images are grey: its brightness is read"),
        "{note}"
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = repository("examples/data/digits.safetensors");
    let broken = dir.path().join("broken.png");
    fs::write(&broken, "hello").unwrap();
    let output = lora(["classify", "--model", arg(&model), arg(&broken), "none.png"])
        .assert()
        .code(1);
    let error = text(&output.get_output().stderr);
    assert!(
        error.contains("broken.png: cannot read this image: "),
        "{error}"
    );
    assert!(
        error.contains("none.png: cannot read this image: "),
        "{error}"
    );
    let bard = crate::models::bard();
    let output = lora(["classify", "--model", arg(bard), "x"])
        .assert()
        .code(1);
    let error = text(&output.get_output().stderr);
    assert!(
        error.contains("is a language model: encoders, ConvNeXt and vision transformers tell"),
        "{error}"
    );
    // A weight alone says nothing of what the model is.
    let alone = dir.path().join("alone.safetensors");
    fs::copy(&model, &alone).unwrap();
    let output = lora(["classify", "--model", arg(&alone), "x.png"])
        .assert()
        .code(1);
    let error = text(&output.get_output().stderr);
    assert!(
        error.contains("alone.safetensors: needs its description beside it"),
        "{error}"
    );
}
