//! A mixture whose batch reaches only some experts.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Linear, Module, Optimizer, ParamsAdamW};
use lora::optim::AdamW;
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{fixed, values};

/// Each token goes to the expert of the gate's choice.
macro_rules! mixture {
    ($name:ident, $($routed:meta)?) => {
        #[derive(Clone, Debug, LoraModel)]
        struct $name {
            #[lora(rank)]
            gate: Linear,
            $(#[$routed])?
            #[lora(rank)]
            experts: Vec<Linear>,
        }

        #[lora::forward]
        impl Module for $name {
            fn forward(&self, xs: &Tensor) -> Result<Tensor> {
                let gates = lora::ops::softmax_last_dim(&xs.apply(&self.gate)?)?;
                let (weights, chosen) = lora::ops::top_k(&gates, 1)?;
                let chosen = chosen.flatten_all()?.to_vec1::<u32>()?;
                let mut rows = Vec::new();
                for (row, &expert) in chosen.iter().enumerate() {
                    let ys = xs.narrow(0, row, 1)?.apply(&self.experts[expert as usize])?;
                    rows.push(ys.broadcast_mul(&weights.narrow(0, row, 1)?)?);
                }
                Tensor::cat(&rows, 0)
            }
        }

        impl $name {
            fn new() -> Self {
                let linear = |out, seed| Linear::new(fixed((out, 4), DType::F32, seed), None);
                Self {
                    gate: linear(3, 1),
                    experts: (0..3).map(|i| linear(4, 10 + i)).collect(),
                }
            }
        }
    };
}

mixture!(Mixture, lora(routed));
mixture!(Unmarked,);

fn loss<M: Module>(model: &M) -> lora::Result<Tensor> {
    Ok(model
        .forward(&fixed((1, 4), DType::F32, 3))?
        .sqr()?
        .mean_all()?)
}

#[test]
fn experts_without_tokens_get_zeros() {
    let model = Mixture::new().to_lora(&LoraConfig::new(2).seed(1)).unwrap();
    let grads = model.backward(&loss(&model).unwrap()).unwrap();
    let mut silent = 0;
    for param in model
        .named_params()
        .iter()
        .filter(|param| param.is_trainable())
    {
        let grad = values(grads.get(&param.tensor).unwrap()).unwrap();
        let is_zero = grad.iter().all(|&value| value == 0.0);
        assert_eq!(
            param.is_routed(),
            param.path.starts_with("experts."),
            "{}",
            param.path
        );
        if param.path.contains("lora_B") && is_zero {
            silent += 1;
        }
    }
    // One token reaches one of three experts.
    assert_eq!(silent, 2);
    model.check_gradients(loss).unwrap();
}

/// The optimiser's own backward pass knows the mark, too: its step is that of `backward`'s gradients.
#[test]
fn an_optimiser_steps_with_the_experts_that_were_reached() {
    let model = || Mixture::new().to_lora(&LoraConfig::new(2).seed(1)).unwrap();
    let (one, two) = (model(), model());
    let mut plain = AdamW::for_model(&one, ParamsAdamW::default()).unwrap();
    let mut checked = AdamW::for_model(&two, ParamsAdamW::default()).unwrap();
    for _ in 0..2 {
        let grads = one.backward(&loss(&one).unwrap()).unwrap();
        plain.step(&grads).unwrap();
        checked.backward_step(&loss(&two).unwrap()).unwrap();
    }
    for (one, two) in one.trainable_vars().iter().zip(two.trainable_vars()) {
        assert_eq!(values(one).unwrap(), values(&two).unwrap());
    }
    let unmarked = Unmarked::new().to_lora(&LoraConfig::new(2)).unwrap();
    let mut optimizer = AdamW::for_model(&unmarked, ParamsAdamW::default()).unwrap();
    let error = optimizer.backward_step(&loss(&unmarked).unwrap());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("`#[lora(routed)]`"), "{error}");
}

#[test]
fn without_the_mark_the_error_names_it() {
    let model = Unmarked::new()
        .to_lora(&LoraConfig::new(2).seed(1))
        .unwrap();
    let error = model
        .backward(&loss(&model).unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("`#[lora(routed)]`"), "{error}");
    assert!(error.starts_with("4 of the model's 8"), "{error}");
}

/// The mark excuses what it marks, and no more.
#[test]
fn other_layers_must_be_reached() {
    let model = Mixture::new().to_lora(&LoraConfig::new(2).seed(1)).unwrap();
    let xs = fixed((1, 4), DType::F32, 3);
    let loss = model.experts[0]
        .forward(&xs)
        .unwrap()
        .sqr()
        .unwrap()
        .mean_all()
        .unwrap();
    let error = model.backward(&loss).unwrap_err().to_string();
    assert!(error.starts_with("2 of the model's 8"), "{error}");
    assert!(
        error.contains("gate.") && !error.contains("experts.1"),
        "{error}"
    );
}
