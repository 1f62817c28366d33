//! Steps that the optimisers refuse: a parameter that the loss does not reach, values that are not
//! finite, a model that was moved.

use super::support::vars;
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Linear, Optimizer, ParamsAdamW};
use lora::optim::{AdamW, LoraFa, LoraPlus, Riemannian};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{fixed, values};

#[derive(Clone, Debug, LoraModel)]
struct Net {
    #[lora(rank)]
    fc1: Linear,
    #[lora(rank)]
    fc2: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc1)?.apply(&self.fc2)
    }
}

fn net() -> LoraNet {
    let fc1 = Linear::new(fixed((3, 4), DType::F32, 1), None);
    let fc2 = Linear::new(fixed((2, 3), DType::F32, 2), None);
    let config = LoraConfig::new(2).seed(1);
    Net { fc1, fc2 }.to_lora(&config).unwrap()
}

fn all_values(model: &LoraNet) -> Vec<Vec<f64>> {
    let vars = vars(model).into_values();
    vars.map(|var| values(&var).unwrap()).collect()
}

type Step = Box<dyn FnMut(&Tensor) -> lora::Result<()>>;

/// Each of the optimisers, as its own `backward_step`.
fn optimisers(model: &mut LoraNet) -> Vec<(&'static str, Step)> {
    let params = ParamsAdamW::default();
    let mut adamw = AdamW::for_model(model, params.clone()).unwrap();
    let mut plus = LoraPlus::new(1e-3, 4.0).adamw(model).unwrap();
    let below = AdamW::for_model(model, params).unwrap();
    let mut riemannian = Riemannian::new(model, below, 1e-2).unwrap();
    // A stays a variable in a clone: LoRA-FA freezes it in its own model.
    let mut frozen = model.clone();
    let mut fa = LoraFa::new(&mut frozen, 1e-3, 0.0).unwrap();
    vec![
        (
            "AdamW",
            Box::new(move |loss| Ok(adamw.backward_step(loss)?)),
        ),
        ("LoRA+", Box::new(move |loss| Ok(plus.backward_step(loss)?))),
        (
            "Riemannian",
            Box::new(move |loss| riemannian.backward_step(loss)),
        ),
        ("LoRA-FA", Box::new(move |loss| fa.backward_step(loss))),
    ]
}

#[test]
fn a_step_needs_a_gradient_for_each_parameter() {
    let mut model = net();
    let xs = fixed((5, 4), DType::F32, 3);
    for (name, mut step) in optimisers(&mut model) {
        let before = all_values(&model);
        let cut = model.fc1.forward(&xs).unwrap().detach();
        let loss = model.fc2.forward(&cut).unwrap().sqr().unwrap();
        let error = step(&loss.mean_all().unwrap()).unwrap_err().to_string();
        let expected = match name {
            "LoRA-FA" => {
                "1 of the model's 2 trainable parameters got no gradient: \
                 fc1.lora_B.default.weight\nusual causes:"
            }
            _ => {
                "2 of the model's 4 trainable parameters got no gradient:\n  - \
                 fc1.lora_A.default.weight\n  - fc1.lora_B.default.weight\nusual causes:"
            }
        };
        assert!(error.starts_with(expected), "{name}: {error}");
        assert_eq!(all_values(&model), before, "{name}");
        step(
            &model
                .forward(&xs)
                .unwrap()
                .sqr()
                .unwrap()
                .mean_all()
                .unwrap(),
        )
        .unwrap();
        assert_ne!(all_values(&model), before, "{name}");
    }
}

#[test]
fn a_loss_that_is_not_finite_is_refused() {
    let mut model = net();
    let before = all_values(&model);
    for value in [f32::NAN, f32::INFINITY] {
        let xs = Tensor::full(value, (1, 4), &Device::Cpu).unwrap();
        let loss = model.forward(&xs).unwrap().sum_all().unwrap();
        let expected = "the loss is not finite: no step was taken\nusual causes:";
        let error = model.backward(&loss).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        for (name, mut step) in optimisers(&mut model) {
            let error = step(&loss).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{name}: {error}");
        }
        assert_eq!(all_values(&model), before);
        // For those who look at the gradients themselves.
        let grads = model.backward_any(&loss).unwrap();
        assert!(vars(&model).values().all(|var| grads.get(var).is_some()));
    }
}

/// The root of a sum of squares that is 0: the loss is finite, its gradient is not.
fn root(model: &LoraNet) -> Tensor {
    let xs = Tensor::zeros((1, 4), DType::F32, &Device::Cpu).unwrap();
    let sum = model.forward(&xs).unwrap().sqr().unwrap().sum_all();
    sum.unwrap().sqrt().unwrap()
}

#[test]
fn a_gradient_that_is_not_finite_is_refused_by_name() {
    let mut model = net();
    let before = all_values(&model);
    assert_eq!(values(&root(&model)).unwrap(), [0.0]);
    for (name, mut step) in optimisers(&mut model) {
        let error = step(&root(&model)).unwrap_err().to_string();
        let part = if name == "LoRA-FA" { "B" } else { "A" };
        let expected = format!(
            "the gradient of `fc1.lora_{part}.default.weight` is not finite: no step was taken\n"
        );
        assert!(error.starts_with(&expected), "{name}: {error}");
        assert_eq!(all_values(&model), before, "{name}");
    }
    let grads = model.backward(&root(&model)).unwrap();
    let vars = model.trainable_vars();
    let mut nameless = AdamW::new(vars, ParamsAdamW::default()).unwrap();
    let error = nameless.step(&grads).unwrap_err().to_string();
    assert!(
        error.starts_with("the gradient of `0` is not finite"),
        "{error}"
    );
    assert_eq!(all_values(&model), before);

    let mut adamw = AdamW::for_model(&model, ParamsAdamW::default()).unwrap();
    adamw.allow_non_finite(true);
    adamw.step(&grads).unwrap();
    assert!(all_values(&model)[0].iter().all(|value| value.is_nan()));
}

#[test]
fn an_optimiser_from_before_a_move_is_refused() {
    let model = net();
    let mut optimizer = AdamW::for_model(&model, ParamsAdamW::default()).unwrap();
    let moved = model.to_device(&Device::Cpu).unwrap();
    let xs = fixed((5, 4), DType::F32, 3);
    let loss = moved.forward(&xs).unwrap().sqr().unwrap().mean_all();
    let loss = loss.unwrap();
    let expected = "the optimiser: none of the optimiser's 4 parameters has a gradient here: they \
                    belong to another model, or to this one before an adapter was added, swapped or \
                    moved; make a new optimiser";
    let error = optimizer.backward_step(&loss).unwrap_err();
    assert!(error.to_string().starts_with(expected), "{error}");
    let error = optimizer.step(&moved.backward(&loss).unwrap()).unwrap_err();
    assert!(error.to_string().starts_with(expected), "{error}");
}
