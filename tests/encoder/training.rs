//! Gradients, dropout, recomputation.

use super::{CASES, HEADS, Io, read_with};
use candle_core::{DType, Result, Tensor};
use lora::models::encoder::{Encoder, LoraEncoder};
use lora::models::{Options, Task};
use lora::{LoraConfig, LoraModel, LoraModule, seed_dropout};
use lora_tests::{assert_close, fill_adapters, fixed, values};

fn base(case: &str, task: Task, dtype: DType) -> Encoder {
    read_with(case, &Options::new().task(task).dtype(dtype)).model
}

/// Any loss that depends on all logits at tokens.
fn loss(logits: &Tensor, io: &Io) -> Result<Tensor> {
    let logits = match logits.rank() {
        2 => logits.clone(),
        _ => {
            let mask = io.get("mask").to_dtype(logits.dtype())?.unsqueeze(2)?;
            logits.broadcast_mul(&mask)?
        }
    };
    let weights = fixed(logits.shape(), logits.dtype(), 5);
    (logits * weights)?.sum_all()? / 10.0
}

const ALL: &str = r".*(query|key|value|dense|_lin|lin\d|Wqkv|Wo|Wi)";

/// With padding, with and without dropout.
#[test]
fn gradients_agree_with_differences_of_the_loss() {
    for case in CASES {
        let io = Io::of(case);
        for (name, task) in HEADS {
            // Small updates: a difference must not cross a corner of ReLU.
            let config = LoraConfig::new(2).seed(5).alpha(0.2);
            let config = config.target_modules(ALL);
            let model = base(case, task, DType::F64).to_lora(&config).unwrap();
            fill_adapters(&model);
            for train in [false, task == Task::SequenceClassification] {
                seed_dropout(4);
                let loss = |model: &LoraEncoder| loss(&model.forward(&io.inputs(), train)?, &io);
                let check = model.check_gradients(|model| Ok(loss(model)?));
                check.unwrap_or_else(|error| panic!("{case}, {name}, {train}: {error}"));
            }
        }
    }
}

/// Of embeddings, norms, poolers and heads that are trained, and of the sentence embedding.
#[test]
fn gradients_of_all_parts() {
    for (case, saved) in [
        ("bert", vec!["LayerNorm", "pooler.dense", "classifier"]),
        ("roberta", vec!["LayerNorm", "classifier"]),
        ("distilbert", vec!["sa_layer_norm", "pre_classifier"]),
        ("modernbert", vec!["attn_norm", "final_norm", "head.norm"]),
    ] {
        let io = Io::of(case);
        let config = LoraConfig::new(2).seed(5).modules_to_save(saved);
        let config = config.target_modules(match case {
            "modernbert" => vec!["tok_embeddings"],
            _ => vec!["word_embeddings", "position_embeddings"],
        });
        let base = base(case, Task::SequenceClassification, DType::F64);
        let model = base.to_lora(&config).unwrap();
        fill_adapters(&model);
        let check = model.check_gradients(|model| {
            let logits = loss(&model.forward(&io.inputs(), false)?, &io)?;
            Ok((logits + loss(&model.embed(&io.inputs(), false)?, &io)?)?)
        });
        check.unwrap_or_else(|error| panic!("{case}: {error}"));
    }
}

/// A head that shares the words' weight has its part of the gradient.
#[test]
fn gradients_of_shared_weights() {
    for (case, table) in [
        ("bert", "word_embeddings"),
        ("roberta", "word_embeddings"),
        ("distilbert", "word_embeddings"),
        ("modernbert", "tok_embeddings"),
    ] {
        let io = Io::of(case);
        let config = LoraConfig::new(2).seed(5).target_modules([table]);
        let base = base(case, Task::MaskedLm, DType::F64);
        let model = base.to_lora(&config).unwrap();
        fill_adapters(&model);
        let loss = |model: &LoraEncoder| loss(&model.forward(&io.inputs(), false)?, &io);
        let check = model.check_gradients(|model| Ok(loss(model)?));
        check.unwrap_or_else(|error| panic!("{case}: {error}"));
    }
}

#[test]
fn dropout_is_drawn_in_training_alone() {
    for case in CASES {
        let io = Io::of(case);
        // ModernBERT's own configuration drops nothing.
        let mut config = base(case, Task::SequenceClassification, DType::F32)
            .config()
            .clone();
        config.dropouts.attention = 0.2;
        config.dropouts.mlp = 0.1;
        config.dropouts.embeddings = 0.1;
        let weights = lora::models::Weights::File(super::folder(case));
        let options = Options::new().task(Task::SequenceClassification);
        let base = lora::models::build::<Encoder>(&config, weights, &options)
            .unwrap()
            .model;
        let model = base.to_lora(&LoraConfig::new(2).seed(1)).unwrap();
        let run = |seed: u64, train| {
            seed_dropout(seed);
            values(&model.forward(&io.inputs(), train).unwrap()).unwrap()
        };
        assert_eq!(run(1, true), run(1, true), "{case}");
        assert_ne!(run(1, true), run(2, true), "{case}");
        assert_eq!(run(1, false), run(2, false), "{case}");
        assert_ne!(run(1, true), run(1, false), "{case}");
    }
}

/// Each dropout acts where it stands: alone it changes the result, in the base model, too.
#[test]
fn each_dropout_acts() {
    for case in ["bert", "roberta", "distilbert", "modernbert"] {
        let io = Io::of(case);
        let created = read_with(case, &Options::new().task(Task::SequenceClassification));
        let run = |change: &dyn Fn(&mut lora::models::encoder::Dropouts)| {
            let mut config = created.config.clone();
            let d = &mut config.dropouts;
            (d.embeddings, d.attention, d.output, d.mlp, d.classifier) = (0., 0., 0., 0., 0.);
            change(d);
            let weights = lora::models::Weights::File(super::folder(case));
            let options = Options::new().task(Task::SequenceClassification);
            let base = lora::models::build::<Encoder>(&config, weights, &options).unwrap();
            seed_dropout(3);
            base.model.forward(&io.inputs(), true).unwrap()
        };
        let none = run(&|_| {});
        let expected = io.of_texts(io.get("sequence"));
        assert_close(case, &io.of_texts(&none), &expected, 1e-5);
        let changes: [&dyn Fn(&mut lora::models::encoder::Dropouts); 5] = [
            &|d| d.embeddings = 0.5,
            &|d| d.attention = 0.5,
            &|d| d.output = 0.5,
            &|d| d.mlp = 0.5,
            &|d| d.classifier = 0.5,
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let error = lora_tests::relative_error(&run(change), &none).unwrap();
            assert!(error > 1e-3, "{case}, dropout {index}: {error:e}");
        }
        // A tiny share drops next to nothing: the composed attention is the fused one.
        let close = run(&|d| d.attention = 1e-7);
        assert_close(case, &io.of_texts(&close), &io.of_texts(&none), 1e-5);
    }
}

/// With dropout, whose masks are drawn again.
#[test]
fn recomputed_gradients_are_the_same() {
    for (case, layers) in [
        ("bert", ["bert.encoder.layer.0", "bert.encoder.layer.1"]),
        (
            "distilbert",
            [
                "distilbert.transformer.layer.0",
                "distilbert.transformer.layer.1",
            ],
        ),
        ("modernbert_bias", ["model.layers.0", "model.layers.2"]),
    ] {
        let io = Io::of(case);
        let base = base(case, Task::MaskedLm, DType::F32);
        let config = LoraConfig::new(2).seed(5).target_modules(ALL);
        let run = |config: &LoraConfig| {
            let model: LoraEncoder = base.to_lora(config).unwrap();
            fill_adapters(&model);
            seed_dropout(9);
            let loss = loss(&model.forward(&io.inputs(), true).unwrap(), &io);
            let grads = model.backward(&loss.unwrap()).unwrap();
            let vars = model.trainable_vars();
            let grads = vars.iter().map(|var| grads.get(var).unwrap().clone());
            grads.collect::<Vec<_>>()
        };
        let (kept, anew) = (run(&config), run(&config.clone().recompute(layers)));
        assert_eq!(kept.len(), anew.len());
        for (kept, anew) in kept.iter().zip(&anew) {
            assert_close(case, anew, kept, 1e-6);
        }
    }
}
