//! The steps of PEFT and PyTorch.

use super::support::{FIXTURE_PARAMS, Fixture, LoraNet, grads_of, vars};
use candle_core::{DType, Var};
use candle_nn::{Conv2d, Conv2dConfig, Optimizer, ParamsAdamW};
use lora::optim::{AdamW, Group, LoraFa, LoraPlus, Riemannian};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{fill_adapters, fixed, values};

const RIEMANNIAN_PARAMS: ParamsAdamW = ParamsAdamW {
    lr: 0.01,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.1,
};

#[test]
fn adamw_is_pytorchs() {
    for (name, tolerance) in [("adamw", 1e-9), ("adamw_f32", 1e-6)] {
        let fixture = Fixture::read(name);
        let model = fixture.model(&["head"]);
        let mut optimizer = AdamW::for_model(&model, FIXTURE_PARAMS).unwrap();
        fixture.check(&model, tolerance, |grads| Ok(optimizer.step(grads)?));
        assert_eq!(optimizer.steps(), 5);
    }
}

#[test]
fn lora_plus_is_pefts() {
    let fixture = Fixture::read("loraplus");
    let model = fixture.model(&["head", "norm"]);
    let mut optimizer = LoraPlus::new(0.003, 4.0)
        .embedding_lr(0.0005)
        .weight_decay(0.2)
        .adamw(&model)
        .unwrap();
    assert_eq!(optimizer.paths().count(), fixture.settings.groups.len());
    let groups = LoraPlus::new(0.003, 4.0).embedding_lr(0.0005);
    let groups = groups.weight_decay(0.2).groups(&model);
    let vars = vars(&model);
    for (path, &(lr, weight_decay)) in &fixture.settings.groups {
        assert_eq!(optimizer.rate_of(path), Some(lr), "{path}");
        let group = |group: &&Group| group.vars.iter().any(|var| var.id() == vars[path].id());
        let group = groups.iter().find(group).unwrap();
        assert_eq!(group.weight_decay, weight_decay, "{path}");
    }
    fixture.check(&model, 1e-9, |grads| Ok(optimizer.step(grads)?));
}

#[test]
fn lora_fa_is_pefts() {
    for (name, tolerance) in [("lorafa", 1e-9), ("lorafa_f32", 1e-6)] {
        let fixture = Fixture::read(name);
        let mut model = fixture.model(&["head"]);
        let mut optimizer = LoraFa::new(&mut model, 0.01, 0.1).unwrap();
        let trained = vars(&model);
        assert_eq!(trained.len(), 4);
        assert!(trained.keys().all(|path| !path.contains("lora_A")));
        fixture.check(&model, tolerance, |grads| optimizer.step(grads));
        assert_eq!(optimizer.adamw().paths().count(), 4);
    }
}

/// PEFT leaves A of an embedding trainable, but does not change it.
#[test]
fn embeddings_take_part_in_lora_fa_but_are_not_preconditioned() {
    let fixture = Fixture::read("lorafa_embedding");
    let mut model = fixture.model(&["head"]);
    let mut optimizer = LoraFa::new(&mut model, 0.01, 0.1).unwrap();
    assert!(!vars(&model).contains_key("embed.lora_embedding_A.default"));
    fixture.check(&model, 1e-9, |grads| optimizer.step(grads));

    let fixture = Fixture::read("riemannian_embedding");
    let model = fixture.model(&["head"]);
    let adamw = AdamW::for_model(&model, RIEMANNIAN_PARAMS).unwrap();
    let mut optimizer = Riemannian::new(&model, adamw, 0.01).unwrap();
    fixture.check(&model, 1e-9, |grads| optimizer.step(grads));
}

#[test]
fn a_frozen_matrix_is_saved_and_loaded() {
    let fixture = Fixture::read("lorafa");
    let mut model = fixture.model(&["head"]);
    let params = |model: &LoraNet| {
        let params = model.named_params().into_iter();
        let params = params.map(|param| (param.path, values(&param.tensor).unwrap()));
        params.collect::<Vec<_>>()
    };
    LoraFa::new(&mut model, 0.01, 0.1).unwrap();
    let before = params(&model);
    let directory = tempfile::tempdir().unwrap();
    model.save_adapter(directory.path()).unwrap();
    let mut other = fixture.model(&["head"]);
    fill_adapters(&other);
    LoraFa::new(&mut other, 0.01, 0.1).unwrap();
    assert_ne!(params(&other), before);
    other.load_adapter(directory.path()).unwrap();
    assert_eq!(params(&other), before);
}

#[test]
fn riemannian_is_pefts() {
    for (name, tolerance) in [("riemannian", 1e-9), ("riemannian_f32", 1e-6)] {
        let fixture = Fixture::read(name);
        let model = fixture.model(&["head"]);
        let adamw = AdamW::for_model(&model, RIEMANNIAN_PARAMS).unwrap();
        let mut optimizer = Riemannian::new(&model, adamw, 0.01).unwrap();
        fixture.check(&model, tolerance, |grads| optimizer.step(grads));
    }
}

/// One step of LoRA-FA without moments brings s·B·A closest to the step of the full weight: for a
/// convolution with groups, where PEFT fails, the difference is orthogonal to the rows of A.
#[test]
fn lora_fa_projects_the_gradient_of_grouped_convolutions() {
    let config = Conv2dConfig {
        groups: 2,
        ..Conv2dConfig::default()
    };
    let base = Conv2d::new(fixed((6, 2, 3, 3), DType::F64, 1), None, config);
    let mut model = base.to_lora(&LoraConfig::new(4).alpha(8.0)).unwrap();
    fill_adapters(&model);
    let params = model.named_params();
    let find = |end: &str| params.iter().find(|p| p.path.starts_with(end)).unwrap();
    let a = find("lora_A").tensor.detach();
    let b = Var::from_tensor(&find("lora_B").tensor).unwrap();
    let start = b.as_tensor().copy().unwrap();
    let mut optimizer = LoraFa::new(&mut model, 1e-3, 0.0).unwrap();
    let grads = grads_of(&model, &fixed((2, 4, 5, 5), DType::F64, 2));
    let grad = grads.get(&b).unwrap().clone();
    optimizer.step(&grads).unwrap();

    // The first step of Adam is lr·g'/(|g'| + eps/√(1 − beta2)): g' up to its sign and eps.
    let (a, grad) = (
        a.reshape((2, 2, 36)).unwrap(),
        grad.reshape((2, 3, 2)).unwrap(),
    );
    let gram = a.matmul(&a.t().unwrap()).unwrap();
    let gram: Vec<Vec<Vec<f64>>> = gram.to_vec3().unwrap();
    let grad: Vec<Vec<Vec<f64>>> = grad.to_vec3().unwrap();
    let moved = ((start - b.as_tensor()).unwrap())
        .reshape((2, 3, 2))
        .unwrap();
    let moved: Vec<Vec<Vec<f64>>> = moved.to_vec3().unwrap();
    let eps = 1e-6 / (1.0f64 - 0.999).sqrt();
    for group in 0..2 {
        let [[p, q], [_, s]] = [0, 1].map(|i| [0, 1].map(|j| gram[group][i][j]));
        let (p, s) = (p + 1e-8, s + 1e-8);
        let det = p * s - q * q;
        for row in 0..3 {
            let (x, y) = (grad[group][row][0], grad[group][row][1]);
            // The scaling is 2.
            let expected = [(x * s - y * q) / det / 4.0, (y * p - x * q) / det / 4.0];
            for (column, g) in expected.iter().enumerate() {
                let expected = 1e-3 * g / (g.abs() + eps);
                let actual = moved[group][row][column];
                assert!((actual - expected).abs() < 1e-12, "{actual} {expected}");
            }
        }
    }
}
