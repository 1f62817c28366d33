//! `lora train` on folders of images.

use crate::models::{arg, bard, repository};
use crate::{lora, object, text};
use image::{Rgb, RgbImage};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// Tiles of the repository's digits, in a folder with a subfolder for each class.
fn digits(dir: &Path, classes: [(u32, &str); 2], count: u32) -> PathBuf {
    let dir = dir.join("digits");
    for (digit, name) in classes {
        let sheet = repository("examples/data/optdigits").join(format!("{digit}.png"));
        let sheet = image::open(sheet).unwrap();
        fs::create_dir_all(dir.join(name)).unwrap();
        for index in 0..count {
            let tile = sheet.crop_imm(8 * (index % 20), 8 * (index / 20), 8, 8);
            tile.save(dir.join(name).join(format!("{index:02}.png")))
                .unwrap();
        }
    }
    dir
}

fn model() -> PathBuf {
    repository("examples/data/digits.safetensors")
}

/// What the command says of two images.
fn classify(model: &Path, adapter: &Path, images: &[PathBuf; 2]) -> serde_json::Value {
    let [one, two] = images.each_ref().map(|image| arg(image));
    let (model, adapter) = (arg(model), arg(adapter));
    let args = [
        "classify",
        "--model",
        model,
        "--adapter",
        adapter,
        one,
        two,
        "--json",
    ];
    object(lora(args))
}

#[test]
fn a_folder_of_new_classes_is_learned_and_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let data = digits(dir.path(), [(3, "three"), (7, "seven")], 8);
    let (model, output) = (model(), dir.path().join("out"));
    let args = [
        "train",
        "--model",
        arg(&model),
        "--data",
        arg(&data),
        "--output",
        arg(&output),
        "--epochs",
        "4",
        "--batch",
        "6",
        "--lr",
        "2e-2",
        "--check-gradients=false",
        "--eval-every",
        "never",
        "--threads",
        "1",
    ];
    let told = lora(args).assert().success();
    let shown = text(&told.get_output().stdout);
    for line in [
        ": convnext, images of 56x56\n",
        ": 12 images to train on, 4 held out, of 2 classes\n",
        "        the model does not know all of these classes: a fresh head is trained in full\n",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
    let classes = fs::read_to_string(output.join("classes.json")).unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&classes).unwrap(),
        json!(["seven", "three"])
    );

    // What was held out are the last of each class.
    let images = ["seven/07.png", "three/07.png"].map(|name| data.join(name));
    let found = classify(&model, &output, &images);
    assert_eq!(found["results"][0]["class"], json!("seven"));
    assert_eq!(found["results"][1]["class"], json!("three"));
    let args = [
        "eval",
        "--model",
        arg(&model),
        "--adapter",
        arg(&output),
        "--data",
        arg(&data),
        "--json",
    ];
    let measured = object(lora(args));
    assert_eq!(measured["results"]["adapter"]["accuracy"], json!(1.0));
    assert!(measured["results"].get("base").is_none());
    // The adapter names its base.
    let args = [
        "classify",
        "--adapter",
        arg(&output),
        arg(&images[0]),
        "--json",
    ];
    // A batch of two is rounded in another way than one image, in the last bits.
    let (alone, found) = (object(lora(args)), &found["results"][0]);
    let alone = &alone["results"][0];
    assert_eq!(alone["class"], found["class"]);
    let class = found["class"].as_str().unwrap();
    let [alone, found] = [alone, found].map(|one| one["shares"][class].as_f64().unwrap());
    assert!((alone - found).abs() < 1e-6, "{alone} {found}");
}

#[test]
fn known_classes_keep_the_head_and_a_run_is_the_same_again() {
    let dir = tempfile::tempdir().unwrap();
    let data = digits(dir.path(), [(3, "3"), (7, "7")], 4);
    let model = model();
    let train = |name: &str| {
        let output = dir.path().join(name);
        let args = [
            "train",
            "--model",
            arg(&model),
            "--data",
            arg(&data),
            "--output",
            arg(&output),
            "--epochs",
            "2",
            "--batch",
            "4",
            "--check-gradients=false",
            "--eval-every",
            "never",
            "--threads",
            "1",
            "--dropout",
            "0.1",
        ];
        let told = lora(args).assert().success();
        let shown = text(&told.get_output().stdout);
        assert!(!shown.contains("fresh head"), "{shown}");
        fs::read(output.join("adapter_model.safetensors")).unwrap()
    };
    assert!(train("one") == train("two"));
    let classes = fs::read_to_string(dir.path().join("one/classes.json")).unwrap();
    let classes: Vec<String> = serde_json::from_str(&classes).unwrap();
    assert_eq!(classes.len(), 10);
}

#[test]
fn colours_widen_the_first_layer() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("photos");
    // Red and blue of the same brightness.
    for (class, colour) in [("red", Rgb([66, 0, 0])), ("blue", Rgb([0, 0, 194]))] {
        fs::create_dir_all(data.join(class)).unwrap();
        for index in 0..4 {
            let image = RgbImage::from_pixel(40, 40, colour);
            image
                .save(data.join(class).join(format!("{index}.png")))
                .unwrap();
        }
    }
    let (model, output) = (model(), dir.path().join("out"));
    let args = [
        "train",
        "--model",
        arg(&model),
        "--data",
        arg(&data),
        "--output",
        arg(&output),
        "--epochs",
        "8",
        "--batch",
        "6",
        "--lr",
        "2e-2",
        "--check-gradients=false",
        "--eval-every",
        "never",
        "--threads",
        "1",
    ];
    let told = lora(args).assert().success();
    let shown = text(&told.get_output().stdout);
    assert!(
        shown.contains("its first layer is widened to three channels"),
        "{shown}"
    );
    let photos = ["red/0.png", "blue/0.png"].map(|name| data.join(name));
    let found = classify(&model, &output, &photos);
    assert_eq!(found["results"][0]["class"], json!("red"));
    assert_eq!(found["results"][1]["class"], json!("blue"));
}

#[test]
fn what_cannot_be_learned_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let data = digits(dir.path(), [(3, "3"), (7, "7")], 4);
    let (model, output) = (model(), dir.path().join("out"));
    let refuse = |model: &Path, data: &Path, more: &[&str], problem: &str| {
        let args = [
            "train",
            "--model",
            arg(model),
            "--data",
            arg(data),
            "--output",
            arg(&output),
        ];
        let told = lora(args.into_iter().chain(more.iter().copied()))
            .assert()
            .code(1);
        let error = text(&told.get_output().stderr);
        assert!(error.contains(problem), "{error}");
        assert!(!output.exists());
    };
    refuse(
        bard(),
        &data,
        &[],
        "is a folder, of images: cannot use --model",
    );
    refuse(
        &model,
        &data,
        &["--max-length", "64"],
        "--max-length is for texts alone: leave it out",
    );
    refuse(&model, &data.join("3"), &[], "has no subfolders");
    fs::write(data.join("3/00.png"), "hello").unwrap();
    refuse(&model, &data, &[], "cannot read image ");
}
