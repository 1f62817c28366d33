//! What models want of their images, and models that timm describes.

use super::message;
use lora::Result;
use lora::images::Input;
use lora::models::convnext::{ConvNext, ConvNextConfig};
use lora::models::{self, Auto, Options, Weights};
use lora::{LoraModel, LoraModule};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn write(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).unwrap();
}

fn pretrained() -> Value {
    json!({"input_size": [1, 32, 32], "mean": [0.5], "std": [0.25], "label_names": ["dark", "light"]})
}

#[test]
fn timms_file_is_read_beside_weights_and_in_a_directory() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let weights = dir.path().join("digits.safetensors");
    let read = |value: Value| {
        write(&dir.path().join("config.json"), &value);
        Input::read(dir.path())
    };
    let input = read(json!({"architecture": "convnext", "pretrained_cfg": pretrained()}))?;
    assert_eq!((input.channels(), input.size()), (1, 32));
    assert_eq!(input.label_names, ["dark", "light"]);
    assert_eq!(Input::read(&weights)?, input);
    let colour = input.in_colour();
    assert_eq!(
        (colour.input_size, colour.mean),
        ([3, 32, 32], vec![0.5; 3])
    );
    // Its own file comes first.
    let mut own = pretrained();
    own["mean"] = json!([0.125]);
    write(
        &weights.with_extension("json"),
        &json!({"pretrained_cfg": own}),
    );
    assert_eq!(Input::read(&weights)?.mean, [0.125]);

    for (key, value, problem) in [
        ("input_size", json!([2, 8, 8]), "its images have 2 channels"),
        (
            "input_size",
            json!([1, 8, 9]),
            "its images are 8x9: they must be square",
        ),
        (
            "input_size",
            json!([1, 1 << 30, 1 << 30]),
            "with a side from 1 to 8192",
        ),
        (
            "mean",
            json!([0.5, 0.5]),
            "mean and std must have a value for each of 1 channel(s)",
        ),
        ("std", json!([0.0]), "std not 0"),
    ] {
        let mut cfg = pretrained();
        cfg[key] = value;
        let error = message(read(json!({"pretrained_cfg": cfg})));
        assert!(
            error.contains(problem) && error.contains("config.json"),
            "{error}"
        );
    }
    fs::remove_file(dir.path().join("config.json")).unwrap();
    let error = message(Input::read(dir.path()));
    assert!(
        error.contains("there is no file beside it that says what images it wants"),
        "{error}"
    );
    Ok(())
}

#[test]
fn transformers_file_is_read() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("config.json"),
        &json!({"model_type": "vit"}),
    );
    let read = |value: Value| {
        write(&dir.path().join("preprocessor_config.json"), &value);
        Input::read(dir.path())
    };
    let whole = json!({
        "do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.1, 0.2, 0.3], "resample": 2, "rescale_factor": 0.00392156862745098,
        "size": {"height": 224, "width": 224}
    });
    let input = read(whole.clone())?;
    assert_eq!(input.input_size, [3, 224, 224]);
    assert_eq!(
        (input.mean, input.std),
        (vec![0.5, 0.4, 0.3], vec![0.1, 0.2, 0.3])
    );
    let with = |changes: &[(&str, Value)]| {
        let mut value = whole.clone();
        for (key, change) in changes {
            value[*key] = change.clone();
        }
        read(value)
    };
    // The crop decides.
    let cropped = with(&[
        ("size", json!({"shortest_edge": 256})),
        ("crop_size", json!(240)),
    ])?;
    assert_eq!(cropped.size(), 240);
    let cropped = with(&[
        ("crop_size", json!({"height": 9, "width": 9})),
        ("do_center_crop", json!(false)),
    ])?;
    assert_eq!(cropped.size(), 224);
    assert_eq!(with(&[("size", json!(64))])?.size(), 64);
    let plain = with(&[("do_normalize", json!(false))])?;
    assert_eq!((plain.mean, plain.std), (vec![0.0; 3], vec![1.0; 3]));
    for (key, value, problem) in [
        (
            "rescale_factor",
            json!(1.0),
            "`rescale_factor` is 1: only 1/255 is supported",
        ),
        ("do_rescale", json!(false), "`do_rescale` is false"),
        (
            "size",
            json!("large"),
            "`size` is \"large\": a side, or height and width, are expected",
        ),
        ("image_mean", json!("grey"), "`image_mean`: "),
    ] {
        let error = message(with(&[(key, value)]));
        assert!(error.contains(problem), "{error}");
    }
    Ok(())
}

fn convnext() -> ConvNextConfig {
    ConvNextConfig {
        in_chans: 1,
        num_classes: 2,
        depths: [1; 4],
        dims: [4, 4, 8, 8],
        kernel_sizes: [3; 4],
        ..Default::default()
    }
}

/// Saves a model's weights.
fn save<M: LoraModel>(model: &M, path: &Path) -> Result<()> {
    let params = model.to_frozen()?.named_params().into_iter();
    let tensors = params.map(|param| (param.path, param.tensor)).collect();
    Ok(candle_core::safetensors::save(&tensors, path)?)
}

#[test]
fn a_model_that_timm_describes_is_read() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let weights = dir.path().join("model.safetensors");
    let model = models::build::<ConvNext>(&convnext(), Weights::Random(3), &Options::new())?.model;
    save(&model, &weights)?;
    let args = json!({
        "depths": [1, 1, 1, 1], "dims": [4, 4, 8, 8], "kernel_sizes": [3, 3, 3, 3], "num_classes": 2
    });
    let own =
        json!({"architecture": "convnext", "model_args": args, "pretrained_cfg": pretrained()});
    let config = dir.path().join("config.json");
    write(&config, &own);
    // By the directory, and by the file.
    for path in [dir.path(), weights.as_path()] {
        let created = models::auto(path, &Options::new())?.into_convnext()?;
        assert_eq!(created.config, convnext());
    }
    let error = message(models::auto(dir.path(), &Options::new())?.into_vit());
    assert!(
        error.contains("a vision transformer is expected, the model is a ConvNeXt"),
        "{error}"
    );

    let vit = r#"{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3, 224, 224]}}"#;
    fs::write(&config, vit).unwrap();
    let error = message(models::auto(dir.path(), &Options::new()));
    assert!(error.contains("blocks.0.attn.qkv.weight"), "{error}");
    for (value, problem) in [
        (
            json!({"architecture": "resnet50"}),
            "its architecture is `resnet50`: ConvNeXt and",
        ),
        (
            json!({"architecture": "convnext_tny"}),
            "did you mean convnext_tiny?",
        ),
        (json!({"architecture": 3}), "`architecture` is 3"),
        (
            json!({"architecture": "convnext", "model_args": {"dims": 3}}),
            "`model_args`: ",
        ),
        (
            json!({"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 3}}),
            "`model_args` has `depth`",
        ),
    ] {
        write(&config, &value);
        let error = message(models::auto(dir.path(), &Options::new()));
        assert!(
            error.contains(problem) && error.contains("config.json"),
            "{error}"
        );
    }
    fs::remove_file(&config).unwrap();
    let error = message(models::auto(&weights, &Options::new()));
    assert!(
        error.contains("model.safetensors: needs its description beside it"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_grey_model_sees_the_luma_of_colours() -> Result<()> {
    let created = models::build::<ConvNext>(&convnext(), Weights::Random(3), &Options::new())?;
    let wide = created.model.in_colour()?;
    assert_eq!(wide.config().in_chans, 3);
    assert!(message(wide.in_colour()).contains("they have 3 channels"));
    let auto = Auto::ConvNext(Box::new(created));
    assert!(
        message(auto.into_decoder()).contains("a decoder is expected, the model is a ConvNeXt")
    );
    Ok(())
}
