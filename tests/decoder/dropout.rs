//! The dropout of attention, as the configuration says: in the training of a LoRA model.

use candle_core::{DType, Device, Tensor};
use lora::models::decoder::{Decoder, DecoderConfig};
use lora::models::{self, Options, Weights};
use lora::{LoraConfig, LoraModel, LoraModule, ops};
use lora_tests::{assert_close, fill_adapters, relative_error};

fn config(dropout: f64) -> DecoderConfig {
    let config = format!(
        r#"{{"model_type": "llama", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64,
            "num_attention_heads": 4, "num_hidden_layers": 2, "attention_dropout": {dropout}}}"#
    );
    serde_json::from_str(&config).unwrap()
}

#[test]
fn acts_in_training_alone_and_by_the_seed() {
    let options = Options::new().dtype(DType::F64);
    let build = |dropout| {
        let created = models::build::<Decoder>(&config(dropout), Weights::Random(1), &options);
        created.unwrap().model
    };
    let ids = Tensor::new(&[[7u32, 3, 9, 1, 4], [2, 8, 5, 6, 0]], &Device::Cpu).unwrap();
    let plain = build(0.0).forward(&ids, None).unwrap();
    let base = build(0.4);
    assert_close("base", &base.forward(&ids, None).unwrap(), &plain, 0.0);

    let mut model = base.to_lora(&LoraConfig::new(2).seed(3)).unwrap();
    fill_adapters(&model);
    let seeded = |model: &<Decoder as LoraModel>::Lora, seed| {
        ops::seed_dropout(seed);
        model.forward(&ids, None).unwrap()
    };
    let first = seeded(&model, 1);
    assert_close("same seed", &seeded(&model, 1), &first, 0.0);
    assert!(relative_error(&seeded(&model, 2), &first).unwrap() > 1e-6);
    let check = model.check_gradients(|model| {
        ops::seed_dropout(1);
        Ok(model.forward(&ids, None)?.sqr()?.mean_all()?)
    });
    check.unwrap();
    model.eval();
    let quiet = seeded(&model, 1);
    assert_close("eval", &seeded(&model, 2), &quiet, 0.0);
    assert!(relative_error(&quiet, &first).unwrap() > 1e-6);
}
