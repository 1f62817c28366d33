//! The loss of the next token against the logits', over the head that is there.

use super::{CASES, io, read};
use candle_core::{DType, Device, Tensor};
use lora::{LoraConfig, LoraModel, LoraModule, ops};
use lora_tests::{assert_close, fill_adapters};

/// The ids, but for padding and for the first words of the first row.
fn labels(ids: &Tensor) -> Tensor {
    let mut labels = ids.to_dtype(DType::I64).unwrap().to_vec2::<i64>().unwrap();
    labels[0][..4].fill(-100);
    labels[1][..6].fill(-100);
    Tensor::new(labels, &Device::Cpu).unwrap()
}

/// The mean over the next tokens that count, from all logits.
fn from_logits(logits: &Tensor, labels: &Tensor) -> candle_core::Result<Tensor> {
    let time = logits.dim(1)?;
    let next = labels.narrow(1, 1, time - 1)?;
    ops::cross_entropy(&logits.narrow(1, 0, time - 1)?, &next)
}

#[test]
fn is_that_of_the_logits() {
    for case in CASES {
        let (base, io) = (read(case, DType::F64).model, io(case));
        let (ids, mask) = (&io["ids"], Some(&io["mask"]));
        let labels = labels(ids);
        let expected = from_logits(&base.forward(ids, mask).unwrap(), &labels).unwrap();
        let loss = base.loss(ids, mask, &labels).unwrap();
        assert_close(case, &loss, &expected, 1e-12);
        // A frozen head, one that is trained with the embedding, one with an adapter and dropout.
        let config = LoraConfig::new(2).seed(1).target_modules(["o_proj"]);
        let trained = config.clone().modules_to_save(["embed_tokens", "lm_head"]);
        let adapted = LoraConfig::new(2).target_modules(["lm_head"]).dropout(0.5);
        for (what, config) in [
            ("frozen", config),
            ("trained", trained),
            ("adapted", adapted),
        ] {
            // A tied head is trained with the embedding.
            let tied = base.config().tie_word_embeddings;
            let config = match (what, tied) {
                ("trained", true) => config.modules_to_save(["embed_tokens"]),
                _ => config,
            };
            let model = base.to_lora(&config).unwrap();
            fill_adapters(&model);
            let run = |loss: &dyn Fn() -> candle_core::Result<Tensor>| {
                lora::seed_dropout(4);
                let loss = loss().unwrap();
                let grads = model.backward(&loss).unwrap();
                (loss, grads)
            };
            let (loss, grads) = run(&|| model.loss(ids, mask, &labels));
            let (expected, others) = run(&|| from_logits(&model.forward(ids, mask)?, &labels));
            let what = format!("{case}, {what}");
            assert_close(&what, &loss, &expected, 1e-12);
            for var in model.trainable_vars() {
                let (ours, expected) = (grads.get(&var).unwrap(), others.get(&var).unwrap());
                assert_close(&what, ours, expected, 1e-9);
            }
        }
    }
}

#[test]
fn wants_labels_of_the_ids() {
    let (model, io) = (read("qwen2", DType::F32).model, io("qwen2"));
    let ids = &io["ids"];
    let message = model.loss(ids, None, &ids.narrow(1, 0, 3).unwrap());
    let message = message.unwrap_err().to_string();
    assert!(
        message.starts_with("the labels are [2, 3], the ids are [2, 14]"),
        "{message}"
    );
}
