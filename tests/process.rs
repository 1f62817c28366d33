//! What concerns the whole process, one test at a time: the vector instructions that the kernels
//! use, that graphs leave nothing behind, and what the logger is told.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Activation, LayerNorm, Linear};
use lora::__private::{Level, force_simd, recorded_values};
use lora::blocks::Mlp;
use lora::layers::LoraLinear;
use lora::{LoraConfig, LoraModel, LoraModule, ops};
use lora_tests::op_fixtures::{THEMES, cases};
use lora_tests::{assert_close, fixed};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keeps the other tests waiting.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn every_op_on_every_level() {
    let _alone = alone();
    let cases: Vec<_> = THEMES.iter().flat_map(|theme| cases(theme)).collect();
    for wanted in [Level::Plain, Level::Avx2, Level::Avx512] {
        // A processor without it runs the next lower again.
        let level = force_simd(wanted);
        for case in &cases {
            case.check(&format!("{level:?}"), DType::F32, 1e-5);
            case.check(&format!("{level:?} f64"), DType::F64, 2e-7);
        }
    }
}

#[test]
fn graphs_leave_nothing_behind() {
    let _alone = alone();
    let before = recorded_values();
    let w = Var::from_tensor(&fixed((4, 4), DType::F32, 1)).unwrap();
    let x = fixed((3, 4), DType::F32, 2);
    let mut held: Vec<Tensor> = Vec::new();
    for pass in 0..3 {
        let y = ops::linear(&x, &w, None).unwrap();
        let z = ops::silu(&y.t().unwrap()).unwrap();
        let empty = ops::silu(&y.narrow(0, 0, 0).unwrap()).unwrap();
        assert_eq!(recorded_values(), before + 3);
        let view = z.t().unwrap().reshape((2, 6)).unwrap();
        drop((y, z, empty));
        // The view leads to its value; nothing leads to the others.
        assert_eq!(recorded_values(), before + 1);
        let loss = ops::gelu(&view).unwrap().sum_all().unwrap();
        drop(view);
        match pass {
            // Never run.
            0 => {}
            1 => drop(loss.backward().unwrap()),
            // What is detached holds no graph.
            _ => held.push(ops::linear(&x, &w, None).unwrap().detach()),
        }
        drop(loss);
        assert_eq!(recorded_values(), before);
    }
    assert_eq!(held.len(), 1);

    // Values that go on another thread, and those of a pass that fails.
    let y = ops::linear(&x, &w, None).unwrap();
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let bad = lora::checkpoint(&y, move |x| {
        match calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => ops::silu(x),
            _ => candle_core::bail!("this function fails"),
        }
    });
    let bad = bad.unwrap();
    assert!(bad.backward().is_err());
    std::thread::spawn(move || drop((y, bad))).join().unwrap();
    assert_eq!(recorded_values(), before);
}

/// An op's gradients must not outlive a pass: a variable's gradient is the only one left.
#[test]
fn the_last_handle_frees_a_value() {
    let _alone = alone();
    let w = Var::from_tensor(&fixed((4, 4), DType::F32, 1)).unwrap();
    let before = recorded_values();
    let mut y = w.as_tensor().clone();
    for _ in 0..100 {
        y = ops::silu(&y).unwrap();
        assert_eq!(recorded_values(), before + 1);
    }
    assert!(y.backward().unwrap().get(&w).is_some());
    drop(y);
    assert_eq!(recorded_values(), before);
}

/// A layer with the adapter of a fixture.
fn adapted(tensors: &HashMap<String, Tensor>, case: usize, n: usize, scale: f64) -> LoraLinear {
    let get = |name: &str| tensors[&format!("{case}.{name}{n}")].clone();
    let base = Linear::new(get("w"), Some(get("bias")));
    let rank = get("a").dim(0).unwrap();
    let config = LoraConfig::new(rank).alpha(scale * rank as f64);
    let layer = LoraLinear::new(&base, &config).unwrap();
    for (var, values) in layer.trainable_vars().iter().zip([get("a"), get("b")]) {
        var.set(&values).unwrap();
    }
    layer
}

#[test]
fn mlp_values_and_gradients_are_pytorchs_at_every_level() {
    let _alone = alone();
    #[derive(serde::Deserialize)]
    struct Spec {
        act: String,
        scale: f64,
    }

    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/blocks/mlp.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let specs = &metadata.metadata().as_ref().unwrap()["cases"];
    let specs: Vec<Spec> = serde_json::from_str(specs).unwrap();
    assert_eq!(specs.len(), 7);
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    for level in [Level::Plain, Level::Avx2, Level::Avx512] {
        force_simd(level);
        for (case, Spec { act, scale }) in specs.iter().enumerate() {
            let get = |name: &str| &tensors[&format!("{case}.{name}")];
            let act = match act.as_str() {
                "gelu" => Activation::Gelu,
                "gelu_tanh" => Activation::GeluPytorchTanh,
                "relu" => Activation::Relu,
                _ => Activation::Silu,
            };
            let (fc1, fc2) = (
                adapted(&tensors, case, 1, *scale),
                adapted(&tensors, case, 2, *scale),
            );
            let norm = LayerNorm::new(get("norm_weight").clone(), get("norm_bias").clone(), 1e-5);
            let x = Var::from_tensor(get("x")).unwrap();
            let shortcut = Var::from_tensor(get("shortcut")).unwrap();
            for recompute in [false, true] {
                let y = Mlp::new(&fc1, &act, &fc2)
                    .norm(&norm)
                    .gamma(Some(get("gamma")))
                    .shortcut(&shortcut)
                    .recompute(recompute)
                    .forward(&x)
                    .unwrap();
                let upstream = fixed(y.shape(), DType::F32, 77);
                let loss = (&y * upstream).unwrap().sum_all().unwrap();
                let grads = loss.backward().unwrap();
                let what = format!("case {case}, {level:?}, recompute {recompute}");
                assert_close(&what, &y, get("output"), 1e-5);
                let (of_fc1, of_fc2) = (fc1.trainable_vars(), fc2.trainable_vars());
                let vars = [
                    &x, &shortcut, &of_fc1[0], &of_fc1[1], &of_fc2[0], &of_fc2[1],
                ];
                for (name, var) in ["x", "shortcut", "a1", "b1", "a2", "b2"]
                    .into_iter()
                    .zip(vars)
                {
                    let expected = get(&format!("grad.{name}"));
                    let grad = grads.get(var).unwrap();
                    assert_close(&format!("{what}: {name}"), grad, expected, 1e-5);
                }
            }
        }
    }
    force_simd(Level::Avx512);
}

/// Keeps what is logged.
struct Log(Mutex<Vec<String>>);

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn conversions_warn_of_filled_caches() {
    static LOG: Log = Log(Mutex::new(Vec::new()));
    let _alone = alone();
    log::set_logger(&LOG).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let warnings = || std::mem::take(&mut *LOG.0.lock().unwrap());

    let key = fixed((1, 3, 4), DType::F32, 1);
    let mut cache = candle_nn::kv_cache::KvCache::new(1, 8);
    let mut model = vec![(cache.clone(), None::<(Tensor, Tensor)>)];
    model.to_frozen().unwrap();
    assert_eq!(warnings(), [""; 0], "of empty caches");
    cache.append(&key, &key).unwrap();
    model[0] = (cache, Some((key.clone(), key.clone())));
    let mut lora = model.to_frozen().unwrap();
    assert_eq!(
        warnings(),
        [
            "the cache of keys and values `0.0` holds 3 positions, which the converted model does not: \
             it begins a new sequence",
            "`0.1` holds two tensors of three or more dimensions, which count as a cache of keys and \
             values, not as parameters; if they are weights, give each a field of its own",
        ]
    );
    lora[0].0.append(&key, &key).unwrap();
    lora.to_base().unwrap();
    assert_eq!(
        warnings(),
        [
            "the cache of keys and values `KvCache` holds 3 positions, which the converted model does \
             not: it begins a new sequence"
        ]
    );
    // Parameters look otherwise.
    let pair = fixed((3, 4), DType::F32, 1);
    Some((pair.clone(), pair)).to_frozen().unwrap();
    log::set_max_level(log::LevelFilter::Off);
    assert_eq!(warnings(), [""; 0], "of matrices");
}
