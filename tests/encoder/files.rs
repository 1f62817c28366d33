//! Directories: other names of tensors, heads that are missing, and what is wrong.

use super::{Io, folder, read};
use candle_core::safetensors::{load, save};
use candle_core::{DType, Device, Tensor};
use lora::models::encoder::Encoder;
use lora::models::{self, Created, Options, Task};
use lora_tests::assert_close;
use std::collections::HashMap;
use std::fs;
use tempfile::TempDir;

/// A copy of a case whose tensors were changed.
fn changed(case: &str, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let config = "config.json";
    fs::copy(folder(case).join(config), copy.path().join(config)).unwrap();
    let mut tensors = load(folder(case).join("model.safetensors"), &Device::Cpu).unwrap();
    change(&mut tensors);
    save(&tensors, copy.path().join("model.safetensors")).unwrap();
    copy
}

fn auto(directory: &TempDir, options: &Options) -> Result<Created<Encoder>, String> {
    let path = directory.path();
    match models::auto(path, options) {
        Ok(auto) => Ok(auto.into_encoder().unwrap()),
        Err(error) => Err(error
            .to_string()
            .replace(&path.display().to_string(), "DIR")),
    }
}

fn renamed(tensors: &mut HashMap<String, Tensor>, rename: impl Fn(&str) -> String) {
    let old = std::mem::take(tensors);
    tensors.extend(
        old.into_iter()
            .map(|(name, tensor)| (rename(&name), tensor)),
    );
}

/// The first BERTs' files: TensorFlow's names of norms, the numbers of positions, the tied head saved
/// with the head of pretraining.
#[test]
fn the_oldest_files_load() {
    let directory = changed("bert", |tensors| {
        renamed(tensors, |name| {
            let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
            name.replace("LayerNorm.bias", "LayerNorm.beta")
        });
        let positions = Tensor::arange(0u32, 24, &Device::Cpu).unwrap();
        tensors.insert("bert.embeddings.position_ids".into(), positions);
        let words = tensors["bert.embeddings.word_embeddings.weight"].clone();
        tensors.insert("cls.predictions.decoder.weight".into(), words);
        let bias = tensors["cls.predictions.bias"].clone();
        tensors.insert("cls.predictions.decoder.bias".into(), bias.clone());
        tensors.insert("cls.seq_relationship.bias".into(), bias);
    });
    let (created, io) = (auto(&directory, &Options::new()).unwrap(), Io::of("bert"));
    let logits = created.model.forward(&io.inputs(), false).unwrap();
    assert_close(
        "old",
        &io.at_tokens(&logits),
        &io.expected_at_tokens("masked"),
        1e-5,
    );
    let harmless = [
        "bert.embeddings.position_ids",
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
        "cls.predictions.decoder.bias",
        "cls.predictions.decoder.weight",
        "cls.seq_relationship.bias",
    ];
    assert_eq!(created.ignored, harmless);
    assert!(created.fresh.is_empty());

    let differs = changed("bert", |tensors| {
        let words = tensors["bert.embeddings.word_embeddings.weight"].clone();
        let changed = (words + 1.0).unwrap();
        tensors.insert("cls.predictions.decoder.weight".into(), changed);
    });
    assert_eq!(
        auto(&differs, &Options::new()).unwrap_err(),
        "the weights do not fit the model:
  - `cls.predictions.decoder.weight` differs from `bert.embeddings.word_embeddings.weight`, but the \
         configuration makes both one weight
  - the file is DIR"
    );
}

/// A file without a head, for a model with one, and the other way round.
#[test]
fn prefixes_come_and_go() {
    for (case, prefix) in [
        ("bert", "bert."),
        ("roberta", "roberta."),
        ("distilbert", "distilbert."),
        ("modernbert", "model."),
    ] {
        let io = Io::of(case);
        // With the prefix, read as a model without a head.
        let hidden = read(case, Task::Features)
            .model
            .forward(&io.inputs(), false);
        let hidden = io.at_tokens(&hidden.unwrap());
        assert_close(case, &hidden, &io.expected_at_tokens("hidden"), 1e-5);
        let bare = changed(case, |tensors| {
            renamed(tensors, |name| {
                name.strip_prefix(prefix).unwrap_or(name).into()
            });
        });
        let options = Options::new().task(Task::SequenceClassification);
        let created = auto(&bare, &options).unwrap();
        assert!(created.fresh.is_empty(), "{case}: {:?}", created.fresh);
        let logits = created.model.forward(&io.inputs(), false).unwrap();
        let expected = io.of_texts(io.get("sequence"));
        assert_close(case, &io.of_texts(&logits), &expected, 1e-5);
    }
}

/// A task that the file has no head for gets a fresh one, the same for the same seed.
#[test]
fn missing_heads_are_fresh() {
    for (case, fresh) in [
        ("minilm", vec!["classifier.weight", "classifier.bias"]),
        (
            "sentence_cls",
            vec![
                "classifier.dense.weight",
                "classifier.dense.bias",
                "classifier.out_proj.weight",
                "classifier.out_proj.bias",
            ],
        ),
        (
            "sentence_last",
            vec![
                "pre_classifier.weight",
                "pre_classifier.bias",
                "classifier.weight",
                "classifier.bias",
            ],
        ),
    ] {
        let io = Io::of(case);
        let options = Options::new().task(Task::SequenceClassification);
        let created = super::read_with(case, &options.clone().num_classes(5).seed(4));
        assert_eq!(created.fresh, fresh, "{case}");
        assert_eq!(created.config.labels.len(), 5);
        let logits = created.model.forward(&io.inputs(), false).unwrap();
        assert_eq!(logits.dims(), [3, 5]);
        let hidden = created.model.hidden_states(&io.inputs(), false).unwrap();
        let hidden = io.at_tokens(&hidden);
        assert_close(case, &hidden, &io.expected_at_tokens("hidden"), 1e-5);
        let again = super::read_with(case, &options.num_classes(5).seed(4));
        let again = again.model.forward(&io.inputs(), false).unwrap();
        assert_close(case, &again, &logits, 1e-7);
    }
    // Another number of classes: what does not depend on the number stays the file's.
    let options = Options::new()
        .task(Task::SequenceClassification)
        .num_classes(4);
    let created = super::read_with("roberta_untied", &options);
    assert_eq!(
        created.fresh,
        ["classifier.out_proj.weight", "classifier.out_proj.bias"]
    );
    // The file's own head.
    let created = read("bert_untied", Task::SequenceClassification);
    assert_eq!(created.config.labels, ["no", "perhaps", "yes"]);
    // A model without a head has RoBERTa's pooler, which files for masked tokens lack.
    let created = read("roberta", Task::Features);
    assert_eq!(created.fresh, ["pooler.dense.weight", "pooler.dense.bias"]);
    // A task that nobody asked for must be in the file.
    let directory = changed("bert", |tensors| {
        tensors.remove("cls.predictions.transform.dense.weight");
    });
    assert_eq!(
        auto(&directory, &Options::new()).unwrap_err(),
        "the weights do not fit the model:
  - `cls.predictions.transform.dense.weight` [32, 32] is missing
  - the file is DIR"
    );
}

#[test]
fn everything_wrong_is_in_one_error() {
    let directory = changed("distilbert", |tensors| {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        tensors.remove("distilbert.transformer.layer.1.ffn.lin2.bias");
        tensors.insert(
            "distilbert.transformer.layer.0.attention.q_lin.weight".into(),
            zeros(&[32, 31]),
        );
        tensors.insert(
            "distilbert.transformer.layer.2.ffn.lin2.bias".into(),
            zeros(&[2]),
        );
    });
    assert_eq!(
        auto(&directory, &Options::new()).unwrap_err(),
        "the weights do not fit the model:
  - `distilbert.transformer.layer.0.attention.q_lin.weight` is [32, 31], the model's is [32, 32]
  - `distilbert.transformer.layer.1.ffn.lin2.bias` [32] is missing
  - `distilbert.transformer.layer.2.ffn.lin2.bias` is not a parameter of the model
  - the file is DIR"
    );
}

#[test]
fn what_is_no_encoder_is_named() {
    let decoder = models::auto(folder("../decoder/gemma"), &Options::new()).unwrap();
    let error = decoder.into_encoder().unwrap_err().to_string();
    let expected = "an encoder is expected, the model is a decoder: `model_type` is \"gemma\"";
    assert!(error.contains(expected), "{error}");
    let encoder = models::auto(folder("bert"), &Options::new()).unwrap();
    let error = encoder.into_decoder().unwrap_err().to_string();
    let expected = "a decoder is expected, the model is an encoder: `model_type` is \"bert\"";
    assert!(error.contains(expected), "{error}");
    let directory = changed("bert", |_| {});
    let config = directory.path().join("config.json");
    fs::write(config, r#"{"model_type": "t5"}"#).unwrap();
    let error = auto(&directory, &Options::new()).unwrap_err();
    assert!(
        error.contains("`model_type` is \"t5\": decoders are llama, "),
        "{error}"
    );
    assert!(error.ends_with(
        "; encoders are bert, roberta, xlm-roberta, camembert, distilbert, modernbert; models of images \
         are vit, deit, dinov2, clip_vision_model, clip, siglip_vision_model, siglip"
    ));
    let options = Options::new().task(Task::MaskedLm);
    let error = models::auto(folder("../decoder/gemma"), &options).unwrap_err();
    let expected = "`Options::task` is MaskedLm: only encoders of text have tasks to choose from";
    assert!(error.to_string().ends_with(expected), "{error}");
    // Classes without a task that has some.
    let directory = changed("minilm", |_| {});
    assert_eq!(
        auto(&directory, &Options::new().num_classes(3)).unwrap_err(),
        "DIR/config.json: `Options::num_classes` is 3, but the task has no classes: choose one by \
         `Options::task`"
    );
}
