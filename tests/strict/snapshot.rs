//! Clones share their variables, snapshots do not.

use super::net::{config, input, net, perturb, tuned};
use candle_core::Module;
use lora::{Init, LoraConfig, LoraModule, TrainBias};
use lora_tests::{assert_close, values};

fn all_values<M: LoraModule>(model: &M) -> Vec<Vec<f64>> {
    let params = model.named_params().into_iter();
    params.map(|param| values(&param.tensor).unwrap()).collect()
}

#[test]
fn a_snapshot_stays_as_training_goes_on() {
    for config in [
        config(),
        config().use_dora(true),
        config().init(Init::Pissa),
        config().train_bias(TrainBias::All),
        config().modules_to_save(["head", "norm"]),
    ] {
        let model = tuned(&config);
        let (best, view) = (model.deep_clone().unwrap(), model.clone());
        let (kept, out) = (all_values(&best), best.forward(&input()).unwrap());
        assert_eq!(kept, all_values(&model));
        perturb(&model, 7);
        assert_eq!(all_values(&best), kept);
        assert_close("snapshot", &best.forward(&input()).unwrap(), &out, 0.0);
        assert_eq!(all_values(&view), all_values(&model));
    }
}

/// A frozen adapter lies in the storage of its variable, which may be trained again.
#[test]
fn a_snapshot_of_a_frozen_adapter_stays() {
    let config = config().modules_to_save(["head"]);
    let mut model = tuned(&config);
    model
        .add_adapter("other", &LoraConfig::new(1).target_modules(["fc2"]))
        .unwrap();
    model.set_active(&["other"]).unwrap();
    let mut snapshot = model.deep_clone().unwrap();
    snapshot.set_active(&["default"]).unwrap();
    let kept = all_values(&snapshot);
    model.set_active(&["default"]).unwrap();
    perturb(&model, 7);
    assert_eq!(all_values(&snapshot), kept);
    assert_ne!(all_values(&model), kept);
}

#[test]
fn a_snapshot_of_a_merged_model_is_merged() {
    let mut model = tuned(&config());
    let out = model.forward(&input()).unwrap();
    model.merge().unwrap();
    let mut snapshot = model.deep_clone().unwrap();
    assert!(snapshot.is_merged());
    model.unmerge().unwrap();
    perturb(&model, 7);
    snapshot.unmerge().unwrap();
    assert_close("snapshot", &snapshot.forward(&input()).unwrap(), &out, 1e-6);
    let base = net().forward(&input()).unwrap();
    let disabled = snapshot.disabled().unwrap();
    assert_close("base", &disabled.forward(&input()).unwrap(), &base, 1e-6);
}
