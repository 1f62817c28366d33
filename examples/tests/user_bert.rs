//! The BERT of the user against the library's: the same weights, logits, parameters and gradients.

use crate::common::fixed;
use candle_core::{DType, Device, Tensor, Var};
use lora::models::encoder::{Encoder, EncoderConfig, Inputs};
use lora::models::{self, Architecture, Created, Options, Task, Weights};
use lora::ops::cross_entropy;
use lora::{Lora, LoraConfig, LoraModel, LoraModule, Role};
use lora_examples::user_bert::Bert;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

fn config(model_type: &str, dropout: f64) -> anyhow::Result<EncoderConfig> {
    let config = serde_json::json!({
        "model_type": model_type, "architectures": [], "vocab_size": 40, "hidden_size": 24,
        "intermediate_size": 40, "num_attention_heads": 3, "num_hidden_layers": 2,
        "max_position_embeddings": 16, "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout
    });
    let config: EncoderConfig = serde_json::from_value(config)?;
    Ok(config
        .with_task(Task::SequenceClassification)
        .with_num_labels(3))
}

/// A file of random parameters, in which the encoder's names have no `bert.` in front.
fn file(dir: &Path, head: bool) -> anyhow::Result<PathBuf> {
    let shapes = models::parameter_shapes::<Encoder>(&config("bert", 0.0)?)?;
    let mut tensors = HashMap::new();
    for (index, (name, shape)) in shapes.iter().enumerate() {
        let of_bert = name.strip_prefix("bert.");
        if head || of_bert.is_some() {
            let values = (fixed(shape.dims(), index)? * 0.6)?;
            tensors.insert(of_bert.unwrap_or(name).to_string(), values);
        }
    }
    let path = dir.join("model.safetensors");
    candle_core::safetensors::save(&tensors, &path)?;
    Ok(path)
}

fn built<M: Architecture<Config = EncoderConfig>>(
    file: &Path,
    dropout: f64,
) -> anyhow::Result<Created<M>> {
    // In f64: some of the gradients here are near to the rounding of f32.
    built_with(file, &config("bert", dropout)?, DType::F64)
}

fn built_with<M: Architecture<Config = EncoderConfig>>(
    file: &Path,
    config: &EncoderConfig,
    dtype: DType,
) -> anyhow::Result<Created<M>> {
    let options = Options::new()
        .task(Task::SequenceClassification)
        .num_classes(3)
        .dtype(dtype);
    let weights = Weights::File(file.into());
    Ok(models::build::<M>(config, weights, &options)?)
}

struct Outcome {
    logits: Tensor,
    padded: Tensor,
    trainable: Vec<String>,
    grads: BTreeMap<String, Tensor>,
}

type Logits<'a, M> =
    &'a dyn Fn(&Lora<M>, &Tensor, Option<&Tensor>, bool) -> candle_core::Result<Tensor>;

fn outcome<M: LoraModel>(base: &M, logits: Logits<'_, M>) -> anyhow::Result<Outcome> {
    let config = LoraConfig::new(2).seed(3).modules_to_save(["classifier"]);
    let model = base.to_lora(&config)?;
    // B starts as zeros, behind which A has no gradient.
    for (index, param) in model.named_params().into_iter().enumerate() {
        if matches!(param.role, Role::Adapter(_)) {
            let values = (fixed(param.tensor.dims(), index)? * 0.3)?;
            Var::from_tensor(&param.tensor)?.set(&values.to_dtype(DType::F64)?)?;
        }
    }
    let ids = Tensor::new(&[[7u32, 3, 9, 1, 39], [5, 2, 8, 0, 0]], &Device::Cpu)?;
    let mask = Tensor::new(&[[1u8, 1, 1, 1, 1], [1, 1, 1, 0, 0]], &Device::Cpu)?;
    let labels = Tensor::new(&[0u32, 2], &Device::Cpu)?;
    let plain = logits(&model, &ids, None, false)?;
    let padded = logits(&model, &ids, Some(&mask), false)?;
    let loss = |model: &Lora<M>| cross_entropy(&logits(model, &ids, Some(&mask), false)?, &labels);
    let grads = model.backward(&loss(&model)?)?;
    model.check_gradients(|model| Ok(loss(model)?))?;
    let trained = model
        .named_params()
        .into_iter()
        .filter(|param| param.is_trainable());
    let trained: Vec<_> = trained.collect();
    let of_grads = trained
        .iter()
        .filter_map(|param| Some((param.path.clone(), grads.get(&param.tensor)?.clone())));
    Ok(Outcome {
        logits: plain.detach(),
        padded: padded.detach(),
        grads: of_grads.collect(),
        trainable: trained.iter().map(|param| param.path.clone()).collect(),
    })
}

fn difference(a: &Tensor, b: &Tensor) -> candle_core::Result<f64> {
    assert_eq!(a.dims(), b.dims());
    let [a, b] = [a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?];
    let largest = b.abs()?.max_all()?.to_scalar::<f64>()?;
    let difference = (a - b)?.abs()?.max_all()?.to_scalar::<f64>()?;
    Ok(difference / largest)
}

fn users(
    model: &Lora<Bert>,
    ids: &Tensor,
    mask: Option<&Tensor>,
    train: bool,
) -> candle_core::Result<Tensor> {
    model.forward(ids, mask, train)
}

fn librarys(
    model: &Lora<Encoder>,
    ids: &Tensor,
    mask: Option<&Tensor>,
    train: bool,
) -> candle_core::Result<Tensor> {
    let inputs = Inputs::new(ids);
    match mask {
        Some(mask) => model.forward(&inputs.mask(mask), train),
        None => model.forward(&inputs, train),
    }
}

#[test]
fn it_is_the_librarys_model() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = file(dir.path(), true)?;
    let mut library = outcome(&built::<Encoder>(&path, 0.0)?.model, &librarys)?;
    let mut user = outcome(&built::<Bert>(&path, 0.0)?.model, &users)?;
    assert!(difference(&user.logits, &library.logits)? < 1e-10);
    assert!(difference(&user.padded, &library.padded)? < 1e-10);
    assert!(difference(&user.padded, &user.logits)? > 1e-4);
    user.trainable.sort();
    library.trainable.sort();
    // A and B of query and value in two layers, and the classifier.
    assert_eq!(user.trainable.len(), 10);
    assert_eq!(user.trainable, library.trainable);
    for (path, grad) in &user.grads {
        let error = difference(grad, &library.grads[path])?;
        assert!(error < 1e-8, "{path}: {error:e}");
    }
    assert_eq!(user.grads.len(), 10);
    Ok(())
}

/// The masks are drawn at the same places: after the same seed both drop the same numbers. The library's
/// last layer draws for the first token alone, whose numbers are the first of one text and of one head.
#[test]
fn it_drops_what_the_librarys_model_drops() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = file(dir.path(), true)?;
    let config = LoraConfig::new(2).seed(3);
    let mut drops = self::config("bert", 0.2)?;
    drops.num_attention_heads = 1;
    let library = built_with::<Encoder>(&path, &drops, DType::F32)?.model;
    let library = library.to_lora(&config)?;
    let user = built_with::<Bert>(&path, &drops, DType::F32)?.model;
    let user = user.to_lora(&config)?;
    let ids = Tensor::new(&[[7u32, 3, 9, 1, 39]], &Device::Cpu)?;
    lora::seed_dropout(11);
    let expected = librarys(&library, &ids, None, true)?;
    lora::seed_dropout(11);
    assert!(difference(&users(&user, &ids, None, true)?, &expected)? < 1e-5);
    let without = users(&user, &ids, None, false)?;
    assert!(difference(&without, &expected)? > 1e-3);
    Ok(())
}

#[test]
fn its_head_is_fresh_where_a_file_has_none() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut fresh = built::<Bert>(&file(dir.path(), false)?, 0.0)?.fresh;
    fresh.sort();
    assert_eq!(fresh, ["classifier.bias", "classifier.weight"]);
    Ok(())
}

#[test]
fn other_encoders_are_refused() -> anyhow::Result<()> {
    let build = |config: &EncoderConfig| {
        let built = models::build::<Bert>(config, Weights::Placeholder, &Options::new());
        built.map(|_| ()).unwrap_err().to_string()
    };
    let roberta = serde_json::json!({"model_type": "roberta"});
    let roberta: EncoderConfig = serde_json::from_value(roberta)?;
    for config in [
        roberta.with_task(Task::SequenceClassification),
        config("bert", 0.0)?.with_task(Task::MaskedLm),
    ] {
        let error = build(&config);
        assert!(
            error.contains("the user's BERT is a BertForSequenceClassification"),
            "{error}"
        );
    }
    let double = Options::new().dtype(DType::F64).num_classes(7);
    let config = config("bert", 0.0)?;
    let model = models::build::<Bert>(&config, Weights::Placeholder, &double)?;
    assert_eq!(model.config.labels.len(), 7);
    Ok(())
}
