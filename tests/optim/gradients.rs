//! What goes between the backward pass and the step, and schedules.

use super::support::{folder, grads_of, linear, vars};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device};
use lora::LoraModule;
use lora::optim::{Accumulator, Schedule, clip_grad_norm, clip_grad_value};
use lora_tests::{assert_close, fixed, values};

#[test]
fn a_schedule_is_that_of_transformers() {
    type Case = (String, usize, usize, Vec<f64>);
    let json = std::fs::read_to_string(folder().join("schedules.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&json).unwrap();
    assert_eq!(cases.len(), 15);
    for (name, steps, warmup, factors) in cases {
        let schedule = match name.as_str() {
            "constant" => Schedule::constant(),
            "linear" => Schedule::linear(steps),
            _ => Schedule::cosine(steps),
        };
        let schedule = schedule.warmup(warmup);
        for (step, expected) in factors.into_iter().enumerate() {
            // Ours stays at the end where a cosine rises again there.
            let ended = name == "cosine" && step > steps;
            let expected = if ended { 0.0 } else { expected };
            let actual = schedule.factor(step);
            assert!(
                (actual - expected).abs() < 1e-15,
                "{name} {steps} {warmup}: {actual} at {step} instead of {expected}"
            );
        }
    }
}

#[test]
fn clipping_is_pytorchs() {
    let fixture = folder().join("clip.safetensors");
    let tensors = candle_core::safetensors::load(fixture, &Device::Cpu).unwrap();
    let model = linear(DType::F64);
    let vars = vars(&model);
    let grads = || {
        let mut grads = GradStore::default();
        for (path, var) in &vars {
            grads.insert(var, tensors[&format!("grad.fc.{path}")].clone());
        }
        grads
    };
    for bound in ["0.5", "2.0", "1000.0"] {
        let (mut by_norm, mut by_value) = (grads(), grads());
        let limit: f64 = bound.parse().unwrap();
        let norm = clip_grad_norm(&model, &mut by_norm, limit).unwrap();
        let expected = values(&tensors[&format!("norm.{bound}")]).unwrap()[0];
        assert!((norm - expected).abs() < 1e-9 * expected);
        clip_grad_value(&model, &mut by_value, limit).unwrap();
        for (path, var) in &vars {
            for (what, grads) in [("by_norm", &by_norm), ("by_value", &by_value)] {
                let key = format!("{what}.{bound}.fc.{path}");
                assert_close(&key, grads.get(var).unwrap(), &tensors[&key], 1e-9);
            }
        }
    }
}

#[test]
fn clipping_refuses_what_is_not_finite_and_bears_what_is_large() {
    let model = linear(DType::F32);
    let vars = model.trainable_vars();
    let mut grads = grads_of(&model, &fixed((3, 6), DType::F32, 3));
    let bad = (vars[1].ones_like().unwrap() * f64::NAN).unwrap();
    let good = grads.insert(&vars[1], bad).unwrap();
    let before = values(grads.get(&vars[0]).unwrap()).unwrap();
    for clip in [
        |m: &_, g: &mut _| clip_grad_norm(m, g, 1e-6).map(|_| ()),
        |m: &_, g: &mut _| clip_grad_value(m, g, 1e-6),
    ] {
        let error = clip(&model, &mut grads).unwrap_err().to_string();
        assert!(
            error.contains("`lora_B.default.weight` is not finite"),
            "{error}"
        );
        assert!(!error.contains("lora_A"), "{error}");
        assert_eq!(values(grads.get(&vars[0]).unwrap()).unwrap(), before);
    }
    // The square is beyond f32.
    let large = (good.ones_like().unwrap() * 1e25).unwrap();
    grads.insert(&vars[1], large);
    let norm = clip_grad_norm(&model, &mut grads, 1.0).unwrap();
    assert!((norm / (1e25 * 10f64.sqrt()) - 1.0).abs() < 1e-6, "{norm}");
    assert!((clip_grad_norm(&model, &mut grads, 1.0).unwrap() - 1.0).abs() < 1e-5);
    assert!(clip_grad_norm(&model, &mut grads, f64::NAN).is_err());
    assert!(clip_grad_value(&model, &mut grads, -1.0).is_err());
}

#[test]
fn micro_batches_make_the_gradient_of_the_batch() {
    let model = linear(DType::F64);
    let batch = fixed((6, 6), DType::F64, 3);
    let whole = grads_of(&model, &batch);
    let mut sum = Accumulator::default();
    assert!(sum.mean().is_err());
    for rows in [0..2, 2..4, 4..6] {
        let part = batch.narrow(0, rows.start, rows.len()).unwrap();
        sum.add(&grads_of(&model, &part)).unwrap();
    }
    assert_eq!(sum.len(), 3);
    let even = sum.mean().unwrap();
    assert!(sum.is_empty());
    for rows in [0..1, 1..6] {
        let part = batch.narrow(0, rows.start, rows.len()).unwrap();
        sum.add_weighted(&grads_of(&model, &part), rows.len() as f64)
            .unwrap();
    }
    let uneven = sum.mean().unwrap();
    for (path, var) in vars(&model) {
        let expected = whole.get(&var).unwrap();
        assert_close(&path, even.get(&var).unwrap(), expected, 1e-12);
        assert_close(&path, uneven.get(&var).unwrap(), expected, 1e-12);
    }
    assert!(sum.add_weighted(&whole, 0.0).is_err());
}
