//! Dropout, as the configuration says: in the training of a LoRA model.

use super::{folder, io, read, timm_config};
use candle_core::{DType, Module, Result, Tensor};
use lora::models::vit::{LoraVit, Vit, VitConfig, VitDropouts};
use lora::models::{self, Options, Weights};
use lora::{LoraConfig, LoraModel, LoraModule, seed_dropout};
use lora_tests::{assert_close, fill_adapters, fixed, relative_error};

/// A LoRA model of a case with these dropouts, in training.
fn with_dropouts(case: &str, change: impl Fn(&mut VitDropouts)) -> LoraVit {
    let options = Options::new().dtype(DType::F64);
    let (mut config, weights) = match case.starts_with("timm") {
        true => (
            timm_config(case),
            Weights::File(folder(case).join("model.safetensors")),
        ),
        false => (read(case, &options).config, Weights::File(folder(case))),
    };
    change(&mut config.dropouts);
    let base = models::build::<Vit>(&config, weights, &options).unwrap();
    let model = base.model.to_lora(&LoraConfig::new(2).seed(1)).unwrap();
    fill_adapters(&model);
    model
}

fn images(case: &str) -> Tensor {
    io(case)["images"].to_dtype(DType::F64).unwrap()
}

fn seeded(model: &LoraVit, images: &Tensor, seed: u64) -> Tensor {
    seed_dropout(seed);
    model.forward(images).unwrap()
}

fn all(dropouts: &mut VitDropouts) {
    (dropouts.embeddings, dropouts.attention) = (0.1, 0.2);
    (dropouts.output, dropouts.inner, dropouts.mlp) = (0.1, 0.15, 0.1);
    dropouts.classifier = 0.25;
}

#[test]
fn is_drawn_in_training_alone_and_by_the_seed() {
    for case in [
        "vit",
        "deit",
        "dinov2",
        "clip",
        "siglip",
        "timm_vit",
        "timm_clip",
    ] {
        let images = images(case);
        let mut model = with_dropouts(case, all);
        let first = seeded(&model, &images, 1);
        assert_close(case, &seeded(&model, &images, 1), &first, 0.0);
        let other = relative_error(&seeded(&model, &images, 2), &first).unwrap();
        assert!(other > 1e-6, "{case}: {other}");
        model.eval();
        let quiet = seeded(&model, &images, 1);
        let plain = with_dropouts(case, |_| {});
        assert_close(case, &quiet, &seeded(&plain, &images, 3), 1e-12);
        assert!(relative_error(&quiet, &first).unwrap() > 1e-6, "{case}");
        // And with the adapters merged.
        let mut base = model.to_base().unwrap().to_frozen().unwrap();
        base.eval();
        assert_close(case, &base.forward(&images).unwrap(), &quiet, 1e-12);
    }
}

/// Each alone changes the result.
#[test]
fn each_acts() {
    let changes: [fn(&mut VitDropouts); 6] = [
        |d| d.embeddings = 0.2,
        |d| d.attention = 0.2,
        |d| d.output = 0.2,
        |d| d.inner = 0.2,
        |d| d.mlp = 0.2,
        |d| d.classifier = 0.2,
    ];
    for case in ["vit", "timm_vit"] {
        let images = images(case);
        let none = seeded(&with_dropouts(case, |_| {}), &images, 3);
        for (index, change) in changes.into_iter().enumerate() {
            let some = seeded(&with_dropouts(case, change), &images, 3);
            let error = relative_error(&some, &none).unwrap();
            assert!(error > 1e-6, "{case}, {index}: {error}");
        }
    }
}

#[test]
fn gradients_are_those_of_the_numbers_that_are_left() {
    for case in ["vit", "clip", "timm_dinov2"] {
        let (images, model) = (images(case), with_dropouts(case, all));
        let loss = |model: &LoraVit| -> Result<Tensor> {
            seed_dropout(5);
            let logits = model.forward(&images)?;
            (&logits * fixed(logits.shape(), DType::F64, 5))?.sum_all()? / 10.0
        };
        let check = model.check_gradients(|model| Ok(loss(model)?));
        check.unwrap_or_else(|error| panic!("{case}: {error}"));
    }
}

#[test]
fn configurations_say_what_is_dropped() {
    let of = |json: &str| serde_json::from_str::<VitConfig>(json).map(|config| config.dropouts);
    let keys = r#""hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2"#;
    let shares = |d: VitDropouts| {
        [
            d.embeddings,
            d.attention,
            d.output,
            d.inner,
            d.mlp,
            d.classifier,
        ]
    };
    for (kind, expected) in [
        ("vit", [0.1, 0.2, 0.1, 0.0, 0.1, 0.0]),
        ("deit", [0.1, 0.2, 0.1, 0.0, 0.1, 0.0]),
        ("dinov2", [0.1, 0.2, 0.0, 0.0, 0.0, 0.0]),
    ] {
        let dropouts = of(&format!(r#"{{"model_type": "{kind}", {keys}}}"#)).unwrap();
        assert_eq!(shares(dropouts), expected, "{kind}");
    }
    let clip = of(r#"{"model_type": "clip_vision_model", "attention_dropout": 0.3}"#).unwrap();
    assert_eq!(shares(clip), [0.0, 0.3, 0.0, 0.0, 0.0, 0.0]);
    let timm = r#"{"architecture": "vit_tiny_patch16_224", "num_classes": 3, "global_pool": "avg", "num_features": 192,
        "pretrained_cfg": {"tag": "x"}, "model_args": {"drop_rate": 0.1, "pos_drop_rate": 0.2,
        "proj_drop_rate": 0.3, "attn_drop_rate": 0.4, "drop_path_rate": 0.5}}"#;
    let config: VitConfig = serde_json::from_str(timm).unwrap();
    assert_eq!(shares(config.dropouts), [0.2, 0.4, 0.3, 0.3, 0.3, 0.1]);
    assert_eq!((config.labels.len(), config.hidden_size), (3, 192));
    assert_eq!(config.pool, lora::models::vit::VitPool::Mean);
    assert_eq!(
        config.without_effect,
        ["`drop_path_rate` is 0.5: training has no such dropout here"]
    );
    let error =
        of(r#"{"architecture": "vit_tiny_patch16_224", "model_args": {"norm_layer": "rms"}}"#);
    assert_eq!(
        error.unwrap_err().to_string(),
        r#"`model_args.norm_layer` is "rms": no such setting is known here"#
    );
    let error = of(r#"{"architecture": "resnet50"}"#)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(r#"`architecture` is "resnet50": timm's models of images are vit_tiny"#)
    );
    let error = of(r#"{"model_type": "vit", "hidden_dropout_prob": 1.0}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`hidden_dropout_prob` is 1.0: a number from 0 to less than 1 is expected"
    );
}
