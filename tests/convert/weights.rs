//! What becomes of the weights: shared, copied, tied, moved to another model.

use super::{F32, Layers, linear, model};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module};
use lora::{
    Adapted, LORA_WEIGHT_NAMES, LoraConfig, LoraModel, LoraModule, TrainBias, transfer_weights,
};
use lora_tests::{fill_adapters, fixed, values};
use std::collections::BTreeMap;

#[test]
fn frozen_weights_are_shared_and_trained_ones_copied() {
    let base = model();
    let config = LoraConfig::new(2)
        .target_modules(["fc1"])
        .modules_to_save(["net.0.1.fc2"]);
    let model = base.to_lora(&config).unwrap();
    let id = |layers: &Layers, i: usize, name: &str| layers["net"].0[i][name].weight().id();
    let shared = model["net"].0[0]["fc1"].unmerged_weight();
    assert_eq!(shared.id(), id(&base, 0, "fc1"));
    let trained = model["net"].0[1]["fc2"].weight();
    assert!(trained.is_variable() && trained.id() != id(&base, 1, "fc2"));
    let names: Vec<String> = model.named_params().into_iter().map(|p| p.path).collect();
    assert_eq!(
        names[..4],
        [
            "net.0.0.fc1.weight",
            "net.0.0.fc1.bias",
            "net.0.0.fc1.lora_A.default.weight",
            "net.0.0.fc1.lora_B.default.weight"
        ]
    );
    assert_eq!(
        model.trainable_vars().len() + model.non_trainable().len(),
        names.len()
    );
    assert_eq!(model.trainable_vars().len(), 2 * 2 + 2);
    // Training does not reach the base model, nor the base model that came back.
    let back = model.to_base().unwrap();
    for var in model.trainable_vars() {
        var.set(&var.ones_like().unwrap().detach()).unwrap();
    }
    let weight = |layers: &Layers| values(layers["net"].0[1]["fc2"].weight()).unwrap();
    assert_eq!(weight(&base), values(&fixed((4, 4), F32, 27)).unwrap());
    assert_eq!(weight(&back), weight(&base));
}

#[test]
fn a_base_model_made_of_variables_is_frozen() {
    let vars = candle_nn::VarMap::new();
    let vb = candle_nn::VarBuilder::from_varmap(&vars, F32, &Device::Cpu);
    let base = vec![candle_nn::linear(3, 2, vb).unwrap()];
    let model = base
        .to_lora(&LoraConfig::new(1).target_modules(["0"]))
        .unwrap();
    assert_eq!(model.trainable_vars().len(), 2);
    let y = model[0].forward(&fixed((2, 3), F32, 1)).unwrap();
    let grads = model.backward(&y.sum_all().unwrap()).unwrap();
    assert!(vars.all_vars().iter().all(|var| grads.get(var).is_none()));
}

#[test]
fn tied_weights_stay_tied_and_count_once() {
    let table = fixed((5, 4), F32, 1);
    let tied = (Embedding::new(table.clone(), 4), Linear::new(table, None));
    let config = LoraConfig::new(1).target_modules(["0"]);
    let model = tied.to_lora(&config).unwrap();
    let summary = model.summary();
    assert_eq!((summary.total, summary.trainable), (20 + 5 + 4, 9));
    assert_eq!(summary.rows[1].tied_to.as_deref(), Some("0.weight"));
    assert!(summary.to_string().contains("= 0.weight"));
    for other in [
        model.to_dtype(DType::F64).unwrap(),
        model.to_device(&Device::Cpu).unwrap(),
    ] {
        let (table, head) = (other.0.unmerged_weight(), other.1.unmerged_weight());
        assert_eq!(table.id(), head.id());
        assert_eq!(other.summary().total, 29);
    }
    assert_eq!(model.to_base().unwrap().0.embeddings().dims(), [5, 4]);
}

#[test]
fn casting_keeps_what_the_model_computes() {
    let config = LoraConfig::new(2)
        .target_modules(["fc1"])
        .train_bias(TrainBias::All);
    let mut model = model().to_lora(&config).unwrap();
    fill_adapters(&model);
    LoraModule::merge(&mut model).unwrap();
    let wide = model.to_dtype(DType::F64).unwrap();
    assert!(wide.is_merged() && model.is_merged());
    let (narrow, wide) = (&model["net"].0[0]["fc1"], &wide["net"].0[0]["fc1"]);
    let x = fixed((2, 4), F32, 3);
    let expected = narrow.forward(&x).unwrap();
    let actual = wide.forward(&x.to_dtype(DType::F64).unwrap()).unwrap();
    lora_tests::assert_close("f64", &actual, &expected, 1e-6);
    assert!(wide.bias().unwrap().is_variable());
    // A half base has f32 adapters.
    let half = model.to_dtype(DType::BF16).unwrap();
    let params = half.named_params();
    let adapter = params.iter().find(|p| p.path.contains("lora_A")).unwrap();
    assert_eq!(adapter.tensor.dtype(), F32);
}

#[test]
fn transfer_is_strict_and_can_ignore() {
    let config = LoraConfig::new(2).target_modules(["fc1"]);
    let src = model().to_lora(&config).unwrap();
    fill_adapters(&src);
    let zeros = || {
        let block = || BTreeMap::from([("fc1", zero()), ("fc2", zero())]);
        let norm = LayerNorm::new(fixed(4, F32, 5), fixed(4, F32, 5), 1e-5);
        BTreeMap::from([("net", (vec![block(), block()], norm))])
    };
    fn zero() -> Linear {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, F32, &Device::Cpu).unwrap();
        Linear::new(zeros(&[4, 4]), Some(zeros(&[4])))
    }
    let all = |m: &<Layers as LoraModel>::Lora| -> Vec<Vec<f64>> {
        m.named_params()
            .iter()
            .map(|p| values(&p.tensor).unwrap())
            .collect()
    };
    let mut dst = zeros().to_lora(&config).unwrap();
    transfer_weights(&src, &mut dst, &[]).unwrap();
    assert_eq!(all(&dst), all(&src));

    // Into the base model and back, without the adapters.
    let mut base = zeros().to_frozen().unwrap();
    let error = transfer_weights(&src, &mut base, &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("unexpected: net.0.0.fc1.lora_A.default.weight"),
        "{error}"
    );
    assert!(
        values(base["net"].0[0]["fc1"].weight())
            .unwrap()
            .iter()
            .all(|&w| w == 0.0)
    );
    transfer_weights(&src, &mut base, LORA_WEIGHT_NAMES).unwrap();
    assert_eq!(all(&base), all(&model().to_frozen().unwrap()));
    let mut again = zeros().to_lora(&config).unwrap();
    transfer_weights(&base, &mut again, LORA_WEIGHT_NAMES).unwrap();

    // Trained values are copied, both ways.
    let var = src.trainable_vars().remove(0);
    var.set(&var.zeros_like().unwrap()).unwrap();
    assert_ne!(all(&dst), all(&src));

    let mut other = vec![linear(1)].to_frozen().unwrap();
    let small = vec![Linear::new(fixed((3, 4), F32, 1), None)]
        .to_frozen()
        .unwrap();
    let error = transfer_weights(&small, &mut other, &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("shape of 0.weight: [3, 4] where the model has [4, 4]"),
        "{error}"
    );
    assert!(error.contains("missing: 0.bias"), "{error}");
    assert!(transfer_weights(&small, &mut other, &["("]).is_err());
    transfer_weights(&small, &mut other, &["0"]).unwrap();
    let mut merged = src.clone();
    LoraModule::merge(&mut merged).unwrap();
    assert!(transfer_weights(&src, &mut merged, &[]).is_err());
}

#[test]
fn transfer_keeps_ties_and_refuses_merged_models() {
    let table = fixed((5, 4), F32, 1);
    let tied = (Embedding::new(table.clone(), 4), Linear::new(table, None));
    let mut dst = tied.to_frozen().unwrap().to_dtype(DType::F64).unwrap();
    transfer_weights(&tied.to_frozen().unwrap(), &mut dst, &[]).unwrap();
    assert_eq!(dst.summary().total, 20);
    let mut src = linear(1).to_lora(&LoraConfig::new(2)).unwrap();
    let mut dst = src.clone();
    src.merge().unwrap();
    let error = transfer_weights(&src, &mut dst, &[])
        .unwrap_err()
        .to_string();
    assert!(error.contains("merged"), "{error}");
    assert_eq!(src.summary(), dst.summary());
}

#[test]
fn errors_of_the_way_back_name_the_layer() {
    let config = LoraConfig::new(2).target_modules(["fc1"]);
    let model = model().to_lora(&config).unwrap();
    for var in model.trainable_vars() {
        var.set(&Tensor::full(f32::NAN, var.shape(), &Device::Cpu).unwrap())
            .unwrap();
    }
    let error = model.to_base().unwrap_err().to_string();
    assert!(
        error.starts_with("net.0.0.fc1: the merged weight is not finite"),
        "{error}"
    );
}

#[test]
fn a_trained_tensor_is_saved_under_its_own_name() {
    let net = || BTreeMap::from([("cls", fixed(3, F32, 4))]);
    let base = (net(), linear(1));
    let config = LoraConfig::new(1)
        .target_modules(["1"])
        .modules_to_save(["cls"]);
    let model = base.to_lora(&config).unwrap();
    for var in model.trainable_vars() {
        var.set(&var.ones_like().unwrap().detach()).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    model.save_adapter(directory.path()).unwrap();
    let mut loaded = base.to_lora(&config).unwrap();
    loaded.load_adapter(directory.path()).unwrap();
    assert_eq!(values(&loaded.0["cls"]).unwrap(), [1.0; 3]);
    let described = base.with_adapter(directory.path()).unwrap();
    assert_eq!(values(&described.0["cls"]).unwrap(), [1.0; 3]);
}
