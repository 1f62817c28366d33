//! Tiny models and adapters: the repository's, and random ones.

use ::lora::models::encoder::{Encoder, EncoderConfig};
use ::lora::models::{self, Options, Weights};
use ::lora::text::Tokenizer;
use ::lora::{Lora, LoraConfig, LoraModel, LoraModule};
use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// A file or folder of the repository.
pub fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// A small Llama of bytes.
pub fn bard() -> &'static Path {
    static BARD: LazyLock<PathBuf> = LazyLock::new(|| repository("examples/data/text/bard"));
    &BARD
}

/// A tiny vision transformer as transformers has it, of images of 24 x 24, in a directory. It knows the classes
/// no, perhaps and yes.
pub fn vit(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    for file in ["config.json", "model.safetensors"] {
        let from = repository("tests/fixtures/vit/vit").join(file);
        fs::copy(from, dir.join(file)).unwrap();
    }
    let input = json!({
        "image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 24}, "resample": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]
    });
    write_json(&dir.join("preprocessor_config.json"), &input);
}

/// A folder of images, eight of each class: red and blue of several brightnesses.
pub fn colours(dir: &Path) -> PathBuf {
    let dir = dir.join("colours");
    for (class, [red, green, blue]) in [("blue", [40, 60, 230]), ("red", [230, 60, 40])] {
        fs::create_dir_all(dir.join(class)).unwrap();
        for index in 0..8u8 {
            let image = RgbImage::from_fn(30, 28, |x, y| {
                let shade = (x + y) as u8 / 2 + index;
                Rgb([red - shade, green - shade, blue - shade])
            });
            image
                .save(dir.join(class).join(format!("{index}.png")))
                .unwrap();
        }
    }
    dir
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes a value as JSON.
pub fn write_json(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).unwrap();
}

/// Writes a line of JSON for each value.
pub fn write_lines(path: &Path, values: &[Value]) -> PathBuf {
    let lines: Vec<String> = values.iter().map(|value| format!("{value}\n")).collect();
    fs::write(path, lines.concat()).unwrap();
    path.into()
}

/// Gives all that is trainable random values up to `size`, other ones for each seed.
pub fn stir<M: LoraModule>(model: &M, seed: u64, size: f32) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for var in model.trainable_vars() {
        let mut value = || (2.0 * rng.random::<f32>() - 1.0) * size;
        let values: Vec<f32> = (0..var.elem_count()).map(|_| value()).collect();
        let values = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
        var.set(&values.to_dtype(var.dtype()).unwrap()).unwrap();
    }
}

/// A model with an adapter that changes much, in eval mode, which is saved.
pub fn adapt<M: LoraModel>(base: &M, config: &LoraConfig, seed: u64, dir: &Path) -> Lora<M> {
    let mut model = base.to_lora(config).unwrap();
    stir(&model, seed, 0.4);
    model.save_adapter(dir).unwrap();
    model.eval();
    model
}

/// The file of a model's weights.
pub fn save<M: LoraModel>(model: &M, path: &Path) {
    let params = model.to_frozen().unwrap().named_params().into_iter();
    let tensors = params.map(|param| (param.path, param.tensor)).collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// A random BERT with a tokenizer of words, in a directory; with a head if there are labels.
pub fn bert(dir: &Path, labels: &[&str]) -> Encoder {
    fs::create_dir_all(dir).unwrap();
    let from = repository("tests/fixtures/text/wordpiece");
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        fs::copy(from.join(file), dir.join(file)).unwrap();
    }
    let tokens = Tokenizer::from_directory(dir).unwrap().vocabulary_size();
    let class = if labels.is_empty() {
        "BertModel"
    } else {
        "BertForSequenceClassification"
    };
    let names = labels.iter().enumerate();
    let names: serde_json::Map<String, Value> = names
        .map(|(place, name)| (place.to_string(), json!(name)))
        .collect();
    let mut config = json!({
        "model_type": "bert", "architectures": [class], "vocab_size": tokens, "hidden_size": 16,
        "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2,
        "max_position_embeddings": 32
    });
    if !labels.is_empty() {
        config["id2label"] = names.into();
    }
    write_json(&dir.join("config.json"), &config);
    let config: EncoderConfig = serde_json::from_value(config).unwrap();
    let model = models::build::<Encoder>(&config, Weights::Random(4), &Options::new());
    let model = model.unwrap().model;
    // Random weights are small: all texts would be alike.
    let modules: &[&str] = match labels.is_empty() {
        true => &["embeddings", "encoder"],
        false => &["bert", "classifier"],
    };
    let config = LoraConfig::new(1).modules_to_save(modules.iter().copied());
    let model = model.to_lora(&config).unwrap();
    stir(&model, 1, 0.4);
    let model = model.to_base().unwrap();
    save(&model, &dir.join("model.safetensors"));
    model
}
