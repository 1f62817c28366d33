//! Tokens, logits, gradients, images of other sizes, files.

use super::{CASES, TIMM, folder, io, of, read};
use candle_core::safetensors::{load, save};
use candle_core::{DType, Device, Module, Result, Tensor};
use lora::models::vit::Vit;
use lora::models::{self, Options, Weights};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, fill_adapters, fixed};
use std::fs;

const TOLERANCE: f64 = 1e-5;

#[test]
fn results_are_those_of_transformers_and_timm() {
    for case in CASES.iter().chain(&TIMM) {
        let (created, io) = (read(case, &Options::new()), io(case));
        assert!(created.fresh.is_empty(), "{case}");
        let model = created.model;
        if let Some(expected) = io.get("tokens") {
            let tokens = model.forward_features(&io["images"]).unwrap();
            assert_close(&format!("{case}, tokens"), &tokens, expected, TOLERANCE);
        }
        let frozen = model.to_frozen().unwrap();
        let results = [model.forward(&io["images"]), frozen.forward(&io["images"])];
        for logits in results {
            let logits = logits.unwrap();
            assert_close(
                &format!("{case}, logits"),
                &logits,
                &io["logits"],
                TOLERANCE,
            );
        }
    }
}

/// Images of another size than the table of positions.
#[test]
fn positions_are_interpolated() {
    for case in CASES {
        let (model, io) = (of(case, DType::F32), io(case));
        let logits = model.forward(&io["wide"]).unwrap();
        assert_close(case, &logits, &io["wide_logits"], 2e-5);
    }
}

/// Every folder of the fixtures is read by the tests.
#[test]
fn every_case_is_listed() {
    let mut folders: Vec<String> = Vec::new();
    for entry in fs::read_dir(folder("")).unwrap() {
        let entry = entry.unwrap();
        if entry.path().join("model.safetensors").exists() {
            folders.push(entry.file_name().into_string().unwrap());
        }
    }
    folders.sort_unstable();
    let mut cases: Vec<&str> = CASES.iter().chain(&TIMM).copied().collect();
    cases.sort_unstable();
    assert_eq!(folders, cases);
}

fn loss(logits: &Tensor) -> Result<Tensor> {
    let weights = fixed(logits.shape(), logits.dtype(), 5);
    (logits * weights)?.sum_all()? / 10.0
}

const ALL: &str = r".*(query|key|value|dense|qkv|\.proj|_proj|fc\d|projection|patch_embedding|classifier)|head|head_dist";

#[test]
fn gradients_agree_with_differences_of_the_loss() {
    for case in CASES.iter().chain(&TIMM) {
        let io = io(case);
        let images = io["images"].to_dtype(DType::F64).unwrap();
        // Small updates: a difference must not cross a corner of ReLU.
        let config = LoraConfig::new(2).seed(5).alpha(0.2).target_modules(ALL);
        let model = of(case, DType::F64).to_lora(&config).unwrap();
        fill_adapters(&model);
        let check = model.check_gradients(|model| Ok(loss(&model.forward(&images)?)?));
        check.unwrap_or_else(|error| panic!("{case}: {error}"));
    }
}

#[test]
fn recomputed_gradients_are_the_same() {
    for (case, layers) in [
        ("vit", ["vit.encoder.layer.0", "vit.encoder.layer.1"]),
        ("timm_vit", ["blocks.0", "blocks.1"]),
        (
            "clip",
            [
                "vision_model.encoder.layers.0",
                "vision_model.encoder.layers.1",
            ],
        ),
    ] {
        let (base, io) = (of(case, DType::F32), io(case));
        let config = LoraConfig::new(2).seed(5);
        let run = |config: &LoraConfig| {
            let model = base.to_lora(config).unwrap();
            fill_adapters(&model);
            let loss = loss(&model.forward(&io["images"]).unwrap()).unwrap();
            let grads = model.backward(&loss).unwrap();
            let vars = model.trainable_vars();
            let grads = vars.iter().map(|var| grads.get(var).unwrap().clone());
            grads.collect::<Vec<_>>()
        };
        let (kept, anew) = (run(&config), run(&config.clone().recompute(layers)));
        assert_eq!(kept.len(), if case == "timm_vit" { 4 } else { 8 });
        for (kept, anew) in kept.iter().zip(&anew) {
            assert_close(case, anew, kept, 1e-6);
        }
    }
}

#[test]
fn wrong_images_are_errors() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    // With a backtrace in the environment, candle's errors print one.
    let error = |model: &Vit, shape: &[usize]| {
        let error = model.forward(&zeros(shape)).unwrap_err().to_string();
        error.lines().next().unwrap().to_string()
    };
    let vit = of("vit", DType::F32);
    assert_eq!(
        error(&vit, &[1, 4, 24, 24]),
        "the images must be (batch, 3, height, width), their shape is [1, 4, 24, 24]"
    );
    assert_eq!(
        error(&vit, &[1, 3, 24, 20]),
        "images of 24 x 20 are not made of patches of 8 x 8"
    );
    assert_eq!(
        error(&of("timm_vit", DType::F32), &[1, 3, 32, 24]),
        "images of 32 x 24 for a model of 24 x 24: resize images"
    );
}

#[test]
fn classifiers_may_be_fresh() {
    let options = Options::new().num_classes(5);
    let both = |name: &str| vec![format!("{name}.weight"), format!("{name}.bias")];
    for (case, fresh) in [
        ("vit", both("classifier")),
        ("vit_bare", both("classifier")),
        ("dinov2_bare", both("classifier")),
        ("siglip", both("classifier")),
        ("timm_vit", both("head")),
        ("timm_deit", [both("head"), both("head_dist")].concat()),
        (
            "deit_teacher",
            [both("cls_classifier"), both("distillation_classifier")].concat(),
        ),
    ] {
        let (created, io) = (read(case, &options), io(case));
        assert_eq!(created.fresh, fresh, "{case}");
        let logits = created.model.forward(&io["images"]).unwrap();
        assert_eq!(logits.dims(), [2, 5], "{case}");
        if let Some(expected) = io.get("tokens") {
            let tokens = created.model.forward_features(&io["images"]).unwrap();
            assert_close(case, &tokens, expected, TOLERANCE);
        }
        let created = read(case, &Options::new().num_classes(0));
        assert!(created.fresh.is_empty(), "{case}");
        let pooled = created.model.forward(&io["images"]).unwrap();
        assert_eq!(pooled.dims()[0], 2);
        assert!(pooled.dims()[1] >= 32, "{case}");
    }
}

#[test]
fn variants_have_timms_sizes() {
    for (name, parameters) in [
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_large_patch16_224", 304_326_632),
        ("deit_small_distilled_patch16_224", 22_436_432),
        ("vit_small_patch14_dinov2", 22_056_192),
        ("vit_base_patch32_clip_224", 88_225_000),
    ] {
        let created = models::create::<Vit>(name, Weights::Placeholder, &Options::new()).unwrap();
        let shapes = models::parameter_shapes::<Vit>(&created.config).unwrap();
        let count: usize = shapes.values().map(|shape| shape.elem_count()).sum();
        assert_eq!(count, parameters, "{name}");
    }
}

/// Extra tensors of a head that the model lacks are reported, anything else is an error.
#[test]
fn what_files_hold_beside() {
    let created = read("clip_whole", &Options::new());
    assert!(created.ignored.contains(&"logit_scale".to_string()));
    assert!(
        created
            .ignored
            .iter()
            .any(|name| name.starts_with("text_model."))
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::copy(folder("vit").join("config.json"), path.join("config.json")).unwrap();
    let weights = folder("vit").join("model.safetensors");
    let mut tensors = load(weights, &Device::Cpu).unwrap();
    let layer = "vit.encoder.layer.1.output.dense.bias";
    let bias = tensors.remove(layer).unwrap();
    tensors.insert(layer.replace(".1.", ".2."), bias);
    save(&tensors, path.join("model.safetensors")).unwrap();
    let error = models::auto(path, &Options::new()).unwrap_err().to_string();
    assert_eq!(
        error.replace(&path.display().to_string(), "DIR"),
        "the weights do not fit the model:
  - `vit.encoder.layer.1.output.dense.bias` [32] is missing
  - `vit.encoder.layer.2.output.dense.bias` is not a parameter of the model
  - the file is DIR"
    );
}
