//! AdamW: its groups, its rates, its state.

use super::support::{FIXTURE_PARAMS, Fixture, grads_of, linear, vars};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Linear, Optimizer, ParamsAdamW};
use lora::optim::{AdamW, Group, LoraFa, LoraPlus, Riemannian, weight_decay_groups};
use lora::{LoraModel, LoraModule};
use lora_tests::{assert_close, fixed, values};

#[test]
fn training_goes_on_from_a_saved_state() {
    let fixture = Fixture::read("adamw");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("optimizer.safetensors");
    let model = fixture.model(&["head"]);
    let mut optimizer = Some(AdamW::for_model(&model, FIXTURE_PARAMS).unwrap());
    fixture.check(&model, 1e-9, |grads| {
        let mut own = optimizer.take().unwrap();
        own.step(grads)?;
        own.save_state(&path)?;
        let mut next = AdamW::for_model(&model, FIXTURE_PARAMS)?;
        next.load_state(&path)?;
        assert_eq!(next.steps(), own.steps());
        optimizer = Some(next);
        Ok(())
    });
    let files = std::fs::read_dir(directory.path()).unwrap();
    assert_eq!(files.count(), 1);
}

#[test]
fn a_state_of_another_model_is_refused_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("optimizer.safetensors");
    let model = linear(DType::F32);
    let mut optimizer = AdamW::for_model(&model, ParamsAdamW::default()).unwrap();
    let grads = grads_of(&model, &fixed((3, 6), DType::F32, 3));
    optimizer.step(&grads).unwrap();
    optimizer.save_state(&path).unwrap();
    optimizer.step(&grads).unwrap();

    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let cpu = &Device::Cpu;
    let a = tensors.remove("lora_A.default.weight.exp_avg").unwrap();
    tensors.insert("lora_C.exp_avg".into(), a.clone());
    tensors.insert(
        "lora_A.default.weight.exp_avg_sq".into(),
        a.t().unwrap().contiguous().unwrap(),
    );
    let infinite = Tensor::full(f32::INFINITY, (5, 2), cpu).unwrap();
    tensors.insert("lora_B.default.weight.exp_avg".into(), infinite);
    let steps = Tensor::new(-1i64, cpu).unwrap();
    tensors.insert("lora_B.default.weight.step".into(), steps);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let error = optimizer.load_state(&path).unwrap_err().to_string();
    for expected in [
        "optimizer.safetensors",
        "`lora_A.default.weight.exp_avg` is missing",
        "`lora_A.default.weight.exp_avg_sq` has shape [6, 2], the parameter [2, 6]",
        "`lora_B.default.weight.exp_avg` holds values that are not finite",
        "`lora_C.exp_avg` belongs to no parameter of this optimiser",
    ] {
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(optimizer.steps(), 2);

    let zeros = Tensor::zeros((5, 2), DType::F32, cpu).unwrap();
    tensors.insert("lora_B.default.weight.exp_avg".into(), zeros);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let error = optimizer.load_state(&path).unwrap_err().to_string();
    assert!(
        error.contains("`lora_B.default.weight.step` is no number of steps"),
        "{error}"
    );
    assert!(optimizer.load_state(directory.path().join("none")).is_err());
    std::fs::write(&path, "nothing").unwrap();
    assert!(optimizer.load_state(&path).is_err());
}

#[test]
fn groups_are_checked_together() {
    let model = linear(DType::F32);
    let vars = model.trainable_vars();
    let stranger = Var::zeros((7, 1), DType::F32, &Device::Cpu).unwrap();
    let groups = [
        Group::new(&[vars[0].clone(), stranger], 1e-3),
        Group::new(&vars, -1.0).weight_decay(f64::NAN),
    ];
    let error = AdamW::grouped(&model, groups).unwrap_err().to_string();
    for expected in [
        "a variable of shape [7, 1] in group 0 is no trained parameter",
        "a parameter of group 1 is in a group already",
        "the learning rate of group 1 is -1",
        "the weight decay of group 1 is NaN",
    ] {
        assert!(error.contains(expected), "{error}");
    }
    assert!(AdamW::grouped(&model, []).is_err());
    let optimizer = || AdamW::grouped(&model, [Group::new(&vars, 1e-3)]).unwrap();
    assert!(optimizer().betas(0.9, 1.0).is_err());
    assert!(optimizer().eps(-1.0).is_err());
    let frozen = Linear::new(fixed((5, 6), DType::F32, 1), None);
    let mut frozen = frozen.to_frozen().unwrap();
    assert!(LoraFa::new(&mut frozen, 1e-3, 0.0).is_err());
    assert!(Riemannian::new(&frozen, optimizer(), 1e-2).is_err());
    assert!(Riemannian::new(&model, optimizer(), f64::NAN).is_err());
}

#[test]
fn learning_rates_keep_their_proportion() {
    let model = linear(DType::F64);
    let mut optimizer = LoraPlus::new(1e-3, 8.0).adamw(&model).unwrap();
    let rates = |optimizer: &AdamW| {
        let paths = ["lora_A.default.weight", "lora_B.default.weight"];
        paths.map(|path| optimizer.rate_of(path).unwrap())
    };
    optimizer.set_lr_factor(0.5);
    assert_eq!(rates(&optimizer), [5e-4, 4e-3]);
    assert_eq!(optimizer.learning_rate(), 5e-4);
    optimizer.set_learning_rate(2e-3);
    assert_eq!(rates(&optimizer), [2e-3, 16e-3]);
    // A factor of 0 leaves the values, a bad one is an error.
    let grads = grads_of(&model, &fixed((3, 6), DType::F64, 3));
    let before = values(&model.trainable_vars()[0]).unwrap();
    optimizer.set_lr_factor(0.0);
    optimizer.step(&grads).unwrap();
    assert_eq!(values(&model.trainable_vars()[0]).unwrap(), before);
    optimizer.set_lr_factor(f64::NAN);
    assert!(optimizer.step(&grads).is_err());
}

#[test]
fn weights_of_vectors_do_not_decay() {
    let fixture = Fixture::read("loraplus");
    let model = fixture.model(&["head", "norm"]);
    let [decayed, kept] = &weight_decay_groups(&model, 1e-3, 0.1)[..] else {
        panic!("two groups")
    };
    assert_eq!((decayed.weight_decay, kept.weight_decay), (0.1, 0.0));
    let names = |group: &Group| {
        let ids: Vec<_> = group.vars.iter().map(|var| var.id()).collect();
        let vars = vars(&model).into_iter();
        let vars = vars.filter(|(_, var)| ids.contains(&var.id()));
        vars.map(|(path, _)| path).collect::<Vec<_>>()
    };
    assert_eq!(names(kept), ["head.bias", "norm.bias", "norm.weight"]);
    assert_eq!(
        names(decayed),
        [
            "embed.lora_embedding_A.default",
            "embed.lora_embedding_B.default",
            "fc1.lora_A.default.weight",
            "fc1.lora_B.default.weight",
            "fc2.lora_A.default.weight",
            "fc2.lora_B.default.weight",
            "head.weight",
        ]
    );
}

#[test]
fn candles_interface_counts_variables() {
    let model = linear(DType::F64);
    let vars = model.trainable_vars();
    let mut ours = AdamW::new(vars.clone(), FIXTURE_PARAMS).unwrap();
    assert_eq!(ours.paths().collect::<Vec<_>>(), ["0", "1"]);
    let grads = grads_of(&model, &fixed((3, 6), DType::F64, 3));
    let start: Vec<_> = vars.iter().map(|v| v.copy().unwrap()).collect();
    ours.step(&grads).unwrap();
    let after: Vec<_> = vars.iter().map(|v| v.copy().unwrap()).collect();
    vars.iter()
        .zip(&start)
        .for_each(|(v, start)| v.set(start).unwrap());
    let mut candles = candle_nn::AdamW::new(vars.clone(), FIXTURE_PARAMS).unwrap();
    candles.step(&grads).unwrap();
    for (var, after) in vars.iter().zip(&after) {
        assert_close("one step", after, var.as_tensor(), 1e-12);
    }
    let twice = vec![vars[0].clone(), vars[0].clone()];
    assert!(AdamW::new(twice, FIXTURE_PARAMS).is_err());
    assert!(<AdamW as Optimizer>::empty(FIXTURE_PARAMS).is_ok());
}

/// A parameter of bf16 has moments of f32.
#[test]
fn half_precision_keeps_wide_moments() {
    let weight = Var::from_tensor(&Tensor::full(1f32, 3, &Device::Cpu).unwrap()).unwrap();
    let half = Var::from_tensor(&weight.to_dtype(DType::BF16).unwrap()).unwrap();
    let params = ParamsAdamW {
        lr: 0.01,
        ..FIXTURE_PARAMS
    };
    let mut wide = AdamW::new(vec![weight.clone()], params.clone()).unwrap();
    let mut narrow = AdamW::new(vec![half.clone()], params).unwrap();
    for step in 0..4 {
        let grad = (fixed(3, DType::F32, step) * 1e-6).unwrap();
        let half_grad = grad.to_dtype(DType::BF16).unwrap();
        let mut grads = GradStore::default();
        grads.insert(&weight, half_grad.to_dtype(DType::F32).unwrap());
        grads.insert(&half, half_grad);
        wide.step(&grads).unwrap();
        narrow.step(&grads).unwrap();
    }
    assert_close(
        "bf16",
        half.as_tensor(),
        weight.as_tensor(),
        4.0 * 2f64.powi(-9),
    );
    let directory = tempfile::tempdir().unwrap();
    let state = |optimizer: &AdamW| {
        let path = directory.path().join("optimizer.safetensors");
        optimizer.save_state(&path).unwrap();
        candle_core::safetensors::load(path, &Device::Cpu).unwrap()
    };
    let (wide, narrow) = (state(&wide), state(&narrow));
    for key in ["0.exp_avg", "0.exp_avg_sq"] {
        assert_eq!(narrow[key].dtype(), DType::F32);
        assert_eq!(values(&narrow[key]).unwrap(), values(&wide[key]).unwrap());
    }
}
