//! Several adapters, DoRA, biases of B and experts: what PEFT's optimisers cannot take, in closed
//! form.

use super::support::vars;
use candle_core::{DType, Module, Tensor, Var};
use candle_nn::{Linear, Optimizer, ParamsAdamW};
use lora::layers::Weight;
use lora::optim::{AdamW, LoraFa, LoraPlus, Riemannian};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{fill_adapters, fixed};

type Matrix = Vec<Vec<f64>>;

fn matrix(tensor: &Tensor) -> Matrix {
    let tensor = tensor.detach();
    let tensor = match tensor.rank() {
        1 => tensor.unsqueeze(0).unwrap(),
        _ => tensor,
    };
    tensor.to_vec2().unwrap()
}

fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let entry = |row: &Vec<f64>, j: usize| row.iter().zip(b).map(|(x, b)| x * b[j]).sum();
    let row = |row| (0..b[0].len()).map(|j| entry(row, j)).collect();
    a.iter().map(row).collect()
}

fn transpose(a: &Matrix) -> Matrix {
    (0..a[0].len())
        .map(|j| a.iter().map(|row| row[j]).collect())
        .collect()
}

/// (M + damping)⁻¹ of a matrix of two rows.
fn inverse(m: &Matrix, damping: f64) -> Matrix {
    let (p, q, s) = (m[0][0] + damping, m[0][1], m[1][1] + damping);
    let det = p * s - q * q;
    vec![vec![s / det, -q / det], vec![-q / det, p / det]]
}

fn scaled(m: &Matrix, factor: f64) -> Matrix {
    let scale = |row: &Vec<f64>| row.iter().map(|x| x * factor).collect();
    m.iter().map(scale).collect()
}

/// The first step of Adam for a gradient.
fn first_step(gradient: &Matrix, lr: f64, eps: f64) -> Matrix {
    let step = |g: &f64| lr * g / (g.abs() + eps);
    gradient
        .iter()
        .map(|row| row.iter().map(step).collect())
        .collect()
}

#[track_caller]
fn assert_moved(what: &str, before: &Matrix, after: &Matrix, step: &Matrix) {
    for ((before, after), step) in before.iter().zip(after).zip(step) {
        for ((before, after), step) in before.iter().zip(after).zip(step) {
            let moved = before - after;
            assert!((moved - step).abs() < 1e-13, "{what}: {moved} {step}");
        }
    }
}

fn base() -> Linear {
    Linear::new(fixed((5, 6), DType::F64, 1), Some(fixed(5, DType::F64, 2)))
}

/// A linear layer with two adapters that both act, one of them DoRA's.
fn two() -> <Linear as LoraModel>::Lora {
    let first = LoraConfig::new(2).alpha(4.0).lora_bias(true);
    let mut model = base().to_lora(&first).unwrap();
    let second = LoraConfig::new(2).alpha(3.0).use_dora(true);
    model.add_adapter("b", &second).unwrap();
    model.set_active(&["default", "b"]).unwrap();
    fill_adapters(&model);
    model
}

#[test]
fn lora_fa_takes_two_adapters_with_dora_and_a_bias() {
    let mut model = two();
    let a = |model: &<Linear as LoraModel>::Lora, name: &str| {
        let params = model.named_params().into_iter();
        let mut params = params.filter(|p| p.path == format!("lora_A.{name}.weight"));
        matrix(&params.next().unwrap().tensor)
    };
    let frozen = [a(&model, "default"), a(&model, "b")];
    let mut optimizer = LoraFa::new(&mut model, 1e-3, 0.0).unwrap();
    let trained = vars(&model);
    let names: Vec<&str> = trained.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "lora_B.b.weight",
            "lora_B.default.bias",
            "lora_B.default.weight",
            "lora_magnitude_vector.b",
        ]
    );
    let before: Vec<Matrix> = trained.values().map(|var| matrix(var)).collect();
    let loss = model.forward(&fixed((3, 6), DType::F64, 5)).unwrap();
    let loss = loss.sqr().unwrap().mean_all().unwrap();
    let grads = model.backward(&loss).unwrap();
    optimizer.step(&grads).unwrap();

    let eps = 1e-6 / (1.0f64 - 0.999).sqrt();
    for ((path, var), before) in trained.iter().zip(&before) {
        let mut gradient = matrix(grads.get(var).unwrap());
        for (name, a, scaling) in [("default", &frozen[0], 2.0), ("b", &frozen[1], 1.5f64)] {
            if *path == format!("lora_B.{name}.weight") {
                let gram = product(a, &transpose(a));
                let inverse = scaled(&inverse(&gram, 1e-8), scaling.powi(-2));
                gradient = product(&gradient, &inverse);
            }
        }
        assert_moved(
            path,
            before,
            &matrix(var),
            &first_step(&gradient, 1e-3, eps),
        );
    }
    assert_eq!([a(&model, "default"), a(&model, "b")], frozen);
}

/// Only what is trained is paired: an adapter that does not act has no say.
#[test]
fn lora_fa_leaves_an_adapter_that_is_not_trained() {
    let mut model = two();
    model.set_active(&["b"]).unwrap();
    LoraFa::new(&mut model, 1e-3, 0.0).unwrap();
    let trained = vars(&model);
    let names: Vec<&str> = trained.keys().map(String::as_str).collect();
    assert_eq!(names, ["lora_B.b.weight", "lora_magnitude_vector.b"]);
}

#[test]
fn lora_plus_has_groups_for_magnitudes_and_biases() {
    let model = two();
    let plus = LoraPlus::new(1e-3, 4.0).weight_decay(0.1);
    let mut optimizer = plus.adamw(&model).unwrap();
    let trained = vars(&model);
    let decays = |path: &str| {
        let groups = plus.groups(&model).into_iter();
        let of = |group: &lora::optim::Group| {
            let mut vars = group.vars.iter();
            vars.any(|var| var.id() == trained[path].id())
        };
        let decays: Vec<f64> = groups.filter(of).map(|group| group.weight_decay).collect();
        decays
    };
    let rates = [
        ("lora_A.default.weight", 1e-3, 0.1),
        ("lora_A.b.weight", 1e-3, 0.1),
        ("lora_B.default.weight", 4e-3, 0.1),
        ("lora_B.b.weight", 4e-3, 0.1),
        ("lora_B.default.bias", 4e-3, 0.0),
        ("lora_magnitude_vector.b", 4e-3, 0.1),
    ];
    assert_eq!(trained.len(), rates.len());
    let loss = model.forward(&fixed((3, 6), DType::F64, 5)).unwrap();
    let grads = model
        .backward(&loss.sqr().unwrap().mean_all().unwrap())
        .unwrap();
    let before: Vec<Matrix> = rates
        .iter()
        .map(|(path, ..)| matrix(&trained[*path]))
        .collect();
    optimizer.step(&grads).unwrap();
    for ((path, lr, decay), before) in rates.iter().zip(&before) {
        assert_eq!(optimizer.rate_of(path), Some(*lr), "{path}");
        assert_eq!(decays(path), [*decay], "{path}");
        let gradient = matrix(grads.get(&trained[*path]).unwrap());
        let mut step = first_step(&gradient, *lr, 1e-8);
        for (row, values) in step.iter_mut().zip(before) {
            for (step, value) in row.iter_mut().zip(values) {
                *step += lr * decay * value;
            }
        }
        let moved = matrix(&trained[*path]);
        for ((before, after), step) in before
            .iter()
            .flatten()
            .zip(moved.iter().flatten())
            .zip(step.iter().flatten())
        {
            assert!(
                (before - after - step).abs() < 1e-9,
                "{path}: {} {step}",
                before - after
            );
        }
    }
}

/// The metric is that of each adapter for itself.
#[test]
fn riemannian_takes_two_adapters() {
    let model = two();
    let params = ParamsAdamW {
        lr: 1e-2,
        eps: 0.5,
        weight_decay: 0.0,
        ..Default::default()
    };
    let adamw = AdamW::for_model(&model, params).unwrap();
    let mut optimizer = Riemannian::new(&model, adamw, 1e-2).unwrap();
    let trained = vars(&model);
    let loss = model.forward(&fixed((3, 6), DType::F64, 5)).unwrap();
    let grads = model
        .backward(&loss.sqr().unwrap().mean_all().unwrap())
        .unwrap();
    let value = |path: &str| matrix(&trained[path]);
    let gradient = |path: &str| matrix(grads.get(&trained[path]).unwrap());
    let mut expected = Vec::new();
    for name in ["default", "b"] {
        let [a, b] = ["A", "B"].map(|part| format!("lora_{part}.{name}.weight"));
        let (va, vb) = (value(&a), value(&b));
        let of_b = inverse(&product(&transpose(&vb), &vb), 1e-2);
        let of_a = inverse(&product(&va, &transpose(&va)), 1e-2);
        expected.push((a.clone(), va, product(&of_b, &gradient(&a))));
        expected.push((b.clone(), vb, product(&gradient(&b), &of_a)));
    }
    let magnitude = "lora_magnitude_vector.b".to_string();
    expected.push((magnitude.clone(), value(&magnitude), gradient(&magnitude)));
    optimizer.step(&grads).unwrap();
    for (path, before, gradient) in expected {
        assert_moved(
            &path,
            &before,
            &value(&path),
            &first_step(&gradient, 1e-2, 0.5),
        );
    }
}

/// Expert e has the rows 2e and 2e + 1 of A and the columns e and e + 3 of B.
#[test]
fn riemannian_takes_each_expert_for_itself() {
    const EXPERTS: usize = 3;
    let base = Weight::new(fixed((EXPERTS, 4, 5), DType::F64, 1)).unwrap();
    let model = base.to_lora(&LoraConfig::new(2).alpha(4.0)).unwrap();
    fill_adapters(&model);
    let params = ParamsAdamW {
        lr: 1e-2,
        eps: 0.5,
        weight_decay: 0.0,
        ..Default::default()
    };
    let adamw = AdamW::for_model(&model, params).unwrap();
    let mut optimizer = Riemannian::new(&model, adamw, 1e-2).unwrap();
    let trained = vars(&model);
    let find = |part: &str| -> &Var {
        let mut found = trained.iter().filter(|(path, _)| path.contains(part));
        found.next().unwrap().1
    };
    let (a, b) = (find("lora_A"), find("lora_B"));
    let target = fixed((EXPERTS, 4, 5), DType::F64, 9);
    let loss = (model.tensor().unwrap() - target).unwrap();
    let grads = model
        .backward(&loss.sqr().unwrap().sum_all().unwrap())
        .unwrap();
    let (before_a, before_b) = (matrix(a), matrix(b));
    let (grad_a, grad_b) = (matrix(grads.get(a).unwrap()), matrix(grads.get(b).unwrap()));
    optimizer.step(&grads).unwrap();
    let (after_a, after_b) = (matrix(a), matrix(b));
    for e in 0..EXPERTS {
        let rows = |m: &Matrix| -> Matrix { m[2 * e..2 * e + 2].to_vec() };
        let columns =
            |m: &Matrix| -> Matrix { m.iter().map(|row| vec![row[e], row[e + EXPERTS]]).collect() };
        let (va, vb) = (rows(&before_a), columns(&before_b));
        let of_b = inverse(&product(&transpose(&vb), &vb), 1e-2);
        let of_a = inverse(&product(&va, &transpose(&va)), 1e-2);
        let step = first_step(&product(&of_b, &rows(&grad_a)), 1e-2, 0.5);
        assert_moved(&format!("A of {e}"), &va, &rows(&after_a), &step);
        let step = first_step(&product(&columns(&grad_b), &of_a), 1e-2, 0.5);
        assert_moved(&format!("B of {e}"), &vb, &columns(&after_b), &step);
    }
}
