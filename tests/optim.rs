//! Optimisers against PyTorch, PEFT and transformers, and where ours go further.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{
    Conv2d, Conv2dConfig, Embedding, LayerNorm, Linear, Optimizer, ParamsAdamW, VarBuilder,
};
use lora::optim::{
    Accumulator, AdamW, Group, LoraFa, LoraPlus, Riemannian, Schedule, clip_grad_norm,
    clip_grad_value, weight_decay_groups,
};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, fill_adapters, fixed, values};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The model of the fixtures.
#[derive(Clone, Debug, LoraModel)]
struct Net {
    embed: Option<Embedding>,
    fc1: Linear,
    norm: LayerNorm,
    fc2: Linear,
    head: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = match &self.embed {
            Some(embed) => embed.forward(xs)?,
            None => xs.clone(),
        };
        let xs = self.norm.forward(&self.fc1.forward(&xs)?.tanh()?)?;
        self.head.forward(&self.fc2.forward(&xs)?.tanh()?)
    }
}

#[derive(Deserialize)]
struct Settings {
    steps: usize,
    groups: BTreeMap<String, (f64, f64)>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/optim")
}

struct Fixture {
    settings: Settings,
    tensors: HashMap<String, Tensor>,
    dtype: DType,
}

impl Fixture {
    fn read(name: &str) -> Self {
        let path = folder().join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let settings = &metadata.metadata().as_ref().unwrap()["settings"];
        Self {
            settings: serde_json::from_str(settings).unwrap(),
            tensors: candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap(),
            dtype: if name.ends_with("f32") {
                DType::F32
            } else {
                DType::F64
            },
        }
    }

    /// The model as it was before the first step.
    fn model(&self, trained: &[&str]) -> LoraNet {
        let vb = VarBuilder::from_tensors(self.tensors.clone(), self.dtype, &Device::Cpu);
        let weight = |name: &str| {
            let name = format!("{name}.weight");
            vb.get_unchecked(&name).unwrap()
        };
        let bias = |name: &str| vb.get_unchecked(&format!("{name}.bias")).unwrap();
        let linear = |name| Linear::new(weight(name), Some(bias(name)));
        let embed = self.tensors.contains_key("embed.weight");
        let net = Net {
            embed: embed.then(|| Embedding::new(weight("embed"), 6)),
            fc1: linear("fc1"),
            norm: LayerNorm::new(weight("norm"), bias("norm"), 1e-5),
            fc2: linear("fc2"),
            head: linear("head"),
        };
        let mut targets = vec!["fc1", "fc2"];
        targets.extend(embed.then_some("embed"));
        let config = LoraConfig::new(2).alpha(3.0).target_modules(targets);
        let config = config
            .rank_pattern("fc2", 3)
            .modules_to_save(trained.iter().copied());
        let model = net.to_lora(&config).unwrap();
        let start = self.starting("init.");
        let vars: BTreeMap<_, _> = vars(&model);
        assert_eq!(
            vars.keys().collect::<Vec<_>>(),
            start.keys().collect::<Vec<_>>()
        );
        for (path, value) in &start {
            vars[path]
                .set(&value.to_dtype(self.dtype).unwrap())
                .unwrap();
        }
        model
    }

    fn starting(&self, prefix: &str) -> BTreeMap<String, &Tensor> {
        let tensors = self.tensors.iter();
        let tensors = tensors.filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_string(), v)));
        tensors.collect()
    }

    /// The gradients of the loss, which must be PyTorch's.
    fn grads(&self, model: &LoraNet, step: usize, tolerance: f64) -> GradStore {
        let input = &self.tensors["input"];
        let input = if input.dtype().is_float() {
            input.to_dtype(self.dtype).unwrap()
        } else {
            input.clone()
        };
        let target = self.tensors["target"].to_dtype(self.dtype).unwrap();
        let loss = (model.forward(&input).unwrap() - target).unwrap();
        let loss = loss.sqr().unwrap().mean_all().unwrap();
        let grads = model.backward(&loss).unwrap();
        let vars = vars(model);
        for (path, expected) in self.starting(&format!("grad.{step}.")) {
            // A frozen parameter has none.
            if let Some(var) = vars.get(&path) {
                let what = format!("step {step}: gradient of {path}");
                assert_close(&what, grads.get(var).unwrap(), expected, tolerance);
            }
        }
        grads
    }

    /// Takes the steps of the fixture and compares the values after each.
    fn check(
        &self,
        model: &LoraNet,
        tolerance: f64,
        mut step_with: impl FnMut(&GradStore) -> lora::Result<()>,
    ) {
        for step in 0..self.settings.steps {
            let grads = self.grads(model, step, tolerance);
            step_with(&grads).unwrap();
            let params = model.named_params().into_iter();
            let params: BTreeMap<_, _> = params.map(|p| (p.path, p.tensor)).collect();
            let expected = self.starting(&format!("value.{step}."));
            assert!(!expected.is_empty());
            for (path, expected) in expected {
                let what = format!("step {step}: {path}");
                assert_close(&what, &params[&path], expected, tolerance);
            }
        }
    }
}

fn vars<M: LoraModule>(model: &M) -> BTreeMap<String, Var> {
    let params = model.named_params().into_iter();
    let params = params.filter(|param| param.is_trainable());
    let vars = params.map(|p| (p.path, Var::from_tensor(&p.tensor).unwrap()));
    vars.collect()
}

/// A linear layer with an adapter whose matrices are not zero.
fn linear(dtype: DType) -> <Linear as LoraModel>::Lora {
    let base = Linear::new(fixed((5, 6), dtype, 1), None);
    let model = base.to_lora(&LoraConfig::new(2).alpha(4.0)).unwrap();
    fill_adapters(&model);
    model
}

fn grads_of<M: LoraModule + Module>(model: &M, input: &Tensor) -> GradStore {
    let loss = model.forward(input).unwrap().sqr().unwrap();
    model.backward(&loss.mean_all().unwrap()).unwrap()
}

const FIXTURE_PARAMS: ParamsAdamW = ParamsAdamW {
    lr: 0.02,
    beta1: 0.8,
    beta2: 0.95,
    eps: 1e-6,
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

#[test]
fn riemannian_is_pefts() {
    for (name, tolerance) in [("riemannian", 1e-9), ("riemannian_f32", 1e-6)] {
        let fixture = Fixture::read(name);
        let model = fixture.model(&["head"]);
        let adamw = ParamsAdamW {
            lr: 0.01,
            weight_decay: 0.1,
            ..ParamsAdamW::default()
        };
        let adamw = AdamW::for_model(&model, adamw).unwrap();
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
        "`lora_C.exp_avg` is of no parameter",
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

/// An adapter of bf16 has moments of f32: small steps add up in them.
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
}
