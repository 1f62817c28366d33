//! A vision transformer through the command: trained, measured, merged, used.

use crate::models::{arg, colours, repository, vit};
use crate::{lora, object, text};
use ::lora::images::{Dataset, Image, Input};
use ::lora::models::vit::LoraVit;
use ::lora::models::{self, Options};
use ::lora::{LoraModel, LoraModule};
use candle_core::{Module, Tensor};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Trains on a folder of images; gives the report.
fn train(model: &Path, data: &Path, output: &Path, more: &str) -> Value {
    let args = [
        "train",
        "--model",
        arg(model),
        "--data",
        arg(data),
        "--output",
        arg(output),
        "--threads",
        "1",
        "--json",
    ];
    object(lora(args.into_iter().chain(more.split_whitespace())))
}

fn eval(model: &Path, adapter: &Path, data: &Path) -> Value {
    let args = [
        "eval",
        "--model",
        arg(model),
        "--adapter",
        arg(adapter),
        "--data",
        arg(data),
        "--json",
    ];
    object(lora(args))["results"].clone()
}

/// The logits that the library computes for an image.
fn logits(model: &LoraVit, dir: &Path, image: &Path) -> Vec<f32> {
    let input = Input::read(dir).unwrap();
    let mut images = Dataset::new(vec!["all".into()], input.size());
    images.push(0, &Image::open(image).unwrap().fit(input.size()));
    let images: Tensor = images.batch(&[0]).unwrap().images;
    let logits = model.forward(&input.normalize(&images).unwrap()).unwrap();
    logits.to_vec2::<f32>().unwrap().remove(0)
}

/// The shares of the classes of logits.
fn shares(logits: &[f32]) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// Compares what `lora classify` says of images with logits.
fn assert_classified(found: &Value, classes: &[&str], expected: &[Vec<f32>]) {
    assert_eq!(found["classes"], json!(classes));
    let results = found["results"].as_array().unwrap();
    assert_eq!(results.len(), expected.len());
    for (result, logits) in results.iter().zip(expected) {
        let shares = shares(logits);
        for (class, expected) in classes.iter().zip(&shares) {
            let found = result["shares"][class].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-5, "{class}: {result}");
        }
        let best = (0..shares.len()).max_by(|&a, &b| shares[a].total_cmp(&shares[b]));
        assert_eq!(result["class"], classes[best.unwrap()]);
    }
}

#[test]
fn new_classes_are_learned_measured_and_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (model, output) = (dir.path().join("vit"), dir.path().join("out"));
    vit(&model);
    let data = colours(dir.path());
    let run = "--epochs 6 --batch 4 --lr 1e-2 --dropout 0.05";
    let report = train(&model, &data, &output, run);
    // Chance is 0.5 of two classes.
    assert_eq!(report["after"]["accuracy"], json!(1.0));
    let loss = |when: &str| report[when]["loss"].as_f64().unwrap();
    assert!(loss("after") < 0.2 * loss("before"), "{report}");
    let config = fs::read(output.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["modules_to_save"], json!(["classifier"]));

    // The base has no head for these classes.
    let measured = eval(&model, &output, &data);
    assert!(measured.get("base").is_none(), "{measured}");
    let figure = |of: &str, name: &str| measured[of][name].as_f64().unwrap();
    for of in ["adapter", "merged"] {
        assert_eq!((figure(of, "accuracy"), figure(of, "F1")), (1.0, 1.0));
    }
    assert!((figure("adapter", "loss") - figure("merged", "loss")).abs() < 1e-6);

    let options = Options::new().num_classes(2).fresh(["classifier"]);
    let base = models::auto(&model, &options).unwrap().into_vit().unwrap();
    let mut tuned = base.model.with_adapter(output.as_path()).unwrap();
    tuned.eval();
    let images = ["blue/7.png", "red/7.png"].map(|name| data.join(name));
    let expected = |tuned: &LoraVit| -> Vec<Vec<f32>> {
        images
            .iter()
            .map(|image| logits(tuned, &model, image))
            .collect()
    };
    let unmerged = expected(&tuned);
    let args = [
        "classify",
        "--model",
        arg(&model),
        "--adapter",
        arg(&output),
        arg(&images[0]),
        arg(&images[1]),
        "--json",
    ];
    let found = object(lora(args));
    assert_classified(&found, &["blue", "red"], &unmerged);
    assert_eq!(found["results"][0]["class"], "blue");
    assert_eq!(found["results"][1]["class"], "red");
    tuned.merge().unwrap();
    for (merged, unmerged) in expected(&tuned).iter().zip(&unmerged) {
        for (merged, unmerged) in merged.iter().zip(unmerged) {
            assert!((merged - unmerged).abs() < 1e-5, "{merged} {unmerged}");
        }
    }
}

/// Folders named for classes that the model knows: its head stays, and the adapter can be merged on disk.
#[test]
fn known_classes_keep_the_head_and_the_merged_file_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (model, output) = (dir.path().join("vit"), dir.path().join("out"));
    vit(&model);
    let data = colours(dir.path());
    for (colour, known) in [("red", "yes"), ("blue", "no")] {
        fs::rename(data.join(colour), data.join(known)).unwrap();
    }
    let report = train(&model, &data, &output, "--epochs 8 --batch 4 --lr 2e-2");
    assert_eq!(report["after"]["accuracy"], json!(1.0));
    let config = fs::read(output.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["modules_to_save"], json!(null));
    let measured = eval(&model, &output, &data);
    let figure = |of: &str, name: &str| measured[of][name].as_f64().unwrap();
    assert!(figure("base", "accuracy") < 1.0, "{measured}");
    assert_eq!(figure("adapter", "accuracy"), 1.0);
    assert!((figure("adapter", "loss") - figure("merged", "loss")).abs() < 1e-6);

    let merged = dir.path().join("merged");
    let args = [
        "merge",
        arg(&model),
        arg(&merged),
        "--adapter",
        arg(&output),
        "--dtype",
        "f32",
    ];
    lora(args).assert().success();
    let images: [PathBuf; 2] = ["no/7.png", "yes/7.png"].map(|name| data.join(name));
    let classify = |args: [&str; 2]| {
        let images = images.each_ref().map(|image| arg(image));
        let args = ["classify", "--json"].into_iter().chain(args).chain(images);
        object(lora(args))
    };
    let with_adapter = classify(["--adapter", arg(&output)]);
    let alone = classify(["--model", arg(&merged)]);
    for index in 0..2 {
        let [one, other] = [&with_adapter, &alone].map(|told| &told["results"][index]);
        assert_eq!(one["class"], other["class"]);
        for class in ["no", "perhaps", "yes"] {
            let [one, other] = [one, other].map(|told| told["shares"][class].as_f64().unwrap());
            assert!((one - other).abs() < 1e-5, "{class}: {one} {other}");
        }
    }
}

#[test]
fn a_model_that_is_not_told_which_images_it_wants_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = repository("tests/fixtures/vit/vit");
    let data = colours(dir.path());
    let args = ["train", "--model", arg(&model), "--data", arg(&data)];
    let told = lora(args).assert().code(1);
    let error = text(&told.get_output().stderr);
    assert!(
        error.contains(
            "there is no file beside it that says what images it wants: `preprocessor_config.json`"
        ),
        "{error}"
    );
}

/// An adapter keeps the name of its base as it was given, which may be a path from another folder.
#[test]
fn a_base_that_is_not_here_and_a_folder_in_the_place_of_images_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    vit(&dir.path().join("vit"));
    let data = colours(dir.path());
    let args = [
        "train",
        "--model",
        "vit",
        "--data",
        "colours",
        "--output",
        "out",
        "--epochs",
        "1",
        "--check-gradients=false",
    ];
    lora(args).current_dir(dir.path()).assert().success();
    let output = dir.path().join("out");
    let refused = |args: &[&str]| {
        let told = lora(args.iter().copied()).assert().code(1);
        let error = text(&told.get_output().stderr);
        error.replace(arg(dir.path()), "@")
    };
    let image = data.join("red/0.png");
    assert_eq!(
        refused(&["classify", "--adapter", arg(&output), arg(&image)]),
        "error: the adapter @/out names vit as its base model, which is not found from here: say --model: --model \
         vit is no directory, and no name on the Hugging Face hub, which is OWNER/NAME\n"
    );
    let model = dir.path().join("vit");
    let with = [
        "classify",
        "--model",
        arg(&model),
        "--adapter",
        arg(&output),
    ];
    lora(with.into_iter().chain([arg(&image)]))
        .assert()
        .success();
    let folder = data.join("red");
    let with: Vec<&str> = with.into_iter().chain([arg(&folder)]).collect();
    assert_eq!(
        refused(&with),
        "error: @/colours/red is a folder: name its images, as in @/colours/red/*\n"
    );
    assert_eq!(
        refused(&["classify", arg(&image)]),
        "error: --model is missing: a directory with config.json, model.safetensors and tokenizer.json, a GGUF \
         file, or OWNER/NAME on the Hugging Face hub; or say --adapter, which names its base\n"
    );
}
