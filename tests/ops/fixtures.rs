//! Values and gradients against PyTorch's, `fixtures/ops`.

use candle_core::{DType, Module, Var};
use candle_nn::Linear;
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::assert_close;
use lora_tests::op_fixtures::{Call, THEMES, cases};
use std::path::Path;

#[test]
fn every_fixture_is_checked() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ops");
    let files = std::fs::read_dir(folder).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    let mut names: Vec<_> = paths
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_string())
        .collect();
    names.sort();
    assert_eq!(names, THEMES);
}

#[test]
fn values_and_gradients_are_pytorchs() {
    for case in THEMES.iter().flat_map(|theme| cases(theme)) {
        case.check("f32", DType::F32, 1e-5);
        case.check("f64", DType::F64, 2e-7);
    }
}

#[test]
fn the_linear_layer_is_pytorchs() {
    let mut checked = 0;
    for case in cases("linear") {
        let Call::LoraLinear { scale } = case.call else {
            continue;
        };
        let get = |name: &str| case.inputs[name].clone();
        let base = Linear::new(get("weight"), case.inputs.get("bias").cloned());
        let rank = get("a").dims()[0];
        let config = LoraConfig::new(rank).alpha(scale * rank as f64);
        let layer = base.to_lora(&config).unwrap();
        let adapter = layer.adapters().iter().next().unwrap();
        let [a, b] = [adapter.a(), adapter.b()].map(|p| Var::from_tensor(p).unwrap());
        a.set(&get("a")).unwrap();
        b.set(&get("b")).unwrap();
        let x = Var::from_tensor(&get("x")).unwrap();

        let y = layer.forward(&x).unwrap();
        assert_close(&case.name, &y, &case.output, 1e-5);
        let upstream = lora_tests::fixed(y.shape(), DType::F32, 77);
        let loss = (y * upstream).unwrap().sum_all().unwrap();
        let grads = layer.backward(&loss).unwrap();
        for (name, var) in [("x", &x), ("a", &a), ("b", &b)] {
            let what = format!("{}: gradient of {name}", case.name);
            assert_close(&what, grads.get(var).unwrap(), &case.grads[name], 1e-5);
        }
        checked += 1;
    }
    assert!(checked >= 5);
}
