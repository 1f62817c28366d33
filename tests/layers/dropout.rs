//! What training draws: one seed repeats all of it.

use candle_core::{DType, Module, Result, Tensor, Var};
use candle_nn::{Dropout, Linear};
use lora::{LoraConfig, LoraModel, LoraModule, checkpoint, ops, seed_dropout};
use lora_tests::{assert_close, fixed, values};

#[derive(Clone, Debug, LoraModel)]
struct Net {
    #[lora(rank)]
    fc: Linear,
    dropout: Dropout,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = xs.apply(&self.fc)?;
        let xs = self.dropout.forward(&xs, true)?;
        xs.apply_t(&self.dropout, true)
    }
}

fn net() -> Net {
    let fc = Linear::new(fixed((8, 6), DType::F32, 1), None);
    Net {
        fc,
        dropout: Dropout::new(0.25),
    }
}

#[test]
fn one_seed_repeats_layers_and_branches() {
    let config = LoraConfig::new(2).dropout(0.5).seed(1);
    let model = net().to_lora(&config).unwrap();
    lora_tests::fill_adapters(&model);
    let xs = fixed((50, 6), DType::F32, 2);
    let run = || values(&model.forward(&xs).unwrap()).unwrap();
    seed_dropout(3);
    let (first, second) = (run(), run());
    assert_ne!(first, second);
    seed_dropout(3);
    assert_eq!((run(), run()), (first.clone(), second));
    // Dropped twice with one probability.
    let dropped = first.iter().filter(|value| **value == 0.0).count() as f64;
    let share = dropped / first.len() as f64;
    assert!((share - (1.0 - 0.75 * 0.75)).abs() < 0.1, "{share}");
    let base = model.to_base().unwrap();
    assert_eq!(format!("{:?}", base.dropout), "Dropout { drop_p: 0.25 }");
}

#[test]
fn dropout_is_candles_by_value_and_gradient() {
    let xs = Var::from_tensor(&fixed((40, 50), DType::F64, 4)).unwrap();
    seed_dropout(3);
    let ys = ops::dropout(&xs, 0.2).unwrap();
    let (kept, all) = (values(&ys).unwrap(), values(&xs).unwrap());
    let mut dropped = 0;
    for (y, x) in kept.iter().zip(&all) {
        match *y == 0.0 {
            true => dropped += 1,
            false => assert!((y - x / 0.8).abs() < 1e-7, "{y} {x}"),
        }
    }
    assert!((300..500).contains(&dropped), "{dropped}");
    let grads = ys.sum_all().unwrap().backward().unwrap();
    let expected = (&ys / xs.as_tensor()).unwrap();
    assert_close("gradient", grads.get(&xs).unwrap(), &expected, 1e-12);
    let same = values(&ops::dropout(&xs, 0.0).unwrap()).unwrap();
    assert_eq!(same, all);
    for bad in [1.0, -0.1, f32::NAN] {
        let error = ops::dropout(&xs, bad).unwrap_err().to_string();
        assert!(
            error.starts_with("dropout probability has to be in [0, 1)"),
            "{error}"
        );
    }
}

/// The second run of a checkpoint drops what the first dropped.
#[test]
fn a_checkpoint_draws_again() {
    let xs = Var::from_tensor(&fixed((4, 5), DType::F64, 4)).unwrap();
    let inner = |xs: &Tensor| ops::dropout(&xs.sqr()?, 0.5)?.sum_all();
    let grad = |loss: Tensor| loss.backward().unwrap().get(&xs).unwrap().clone();
    seed_dropout(3);
    let expected = grad(inner(&xs).unwrap());
    seed_dropout(3);
    let actual = grad(checkpoint(&xs, inner).unwrap());
    assert_close("gradient", &actual, &expected, 1e-12);
}
