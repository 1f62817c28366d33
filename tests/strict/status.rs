//! Who is trained after what, and what the status says of models whose layers differ.

use super::net::{LoraNet, config, input, net, perturb, tuned};
use candle_core::Module;
use lora::{Init, LoraModel, LoraModule, State, TrainBias};
use lora_tests::values;

/// Whether each adapter is trained.
fn trained(model: &LoraNet) -> Vec<(String, Option<bool>)> {
    let status = model.model_status().requires_grad.into_iter();
    status
        .map(|(name, state)| (name, state.uniform().copied()))
        .collect()
}

fn of(states: &[(&str, bool)]) -> Vec<(String, Option<bool>)> {
    let states = states.iter();
    states
        .map(|(name, state)| (name.to_string(), Some(*state)))
        .collect()
}

#[test]
fn each_operation_leaves_the_right_ones_trained() {
    let mut model = tuned(&config());
    assert_eq!(trained(&model), of(&[("default", true)]));
    model.add_adapter("b", &config()).unwrap();
    assert_eq!(trained(&model), of(&[("default", true), ("b", false)]));
    model.set_active(&["b"]).unwrap();
    assert_eq!(trained(&model), of(&[("default", false), ("b", true)]));
    model.set_active(&["default", "b"]).unwrap();
    assert_eq!(trained(&model), of(&[("default", true), ("b", true)]));
    model.set_adapter_trainable("default", false).unwrap();
    assert_eq!(trained(&model), of(&[("default", false), ("b", true)]));
    assert!(model.disabled().unwrap().trainable_vars().is_empty());
    assert_eq!(trained(&model), of(&[("default", false), ("b", true)]));
    model.merge().unwrap();
    assert_eq!(trained(&model), of(&[("default", false), ("b", true)]));
    model.unmerge().unwrap();
    assert_eq!(trained(&model), of(&[("default", false), ("b", true)]));
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter(dir.path()).unwrap();
    model.hot_swap("b", dir.path()).unwrap();
    assert_eq!(trained(&model), of(&[("default", false), ("b", true)]));
    model.load_adapter_as("c", dir.path()).unwrap();
    assert_eq!(trained(&model)[2], ("c".into(), Some(false)));
    model.delete_adapter("default").unwrap();
    assert_eq!(trained(&model), of(&[("b", true), ("c", false)]));
    model.set_active(&[]).unwrap();
    assert!(model.trainable_vars().is_empty());
    assert_eq!(model.model_status().enabled, State::Uniform(false));
}

#[test]
fn layers_that_differ_are_irregular() {
    let mut model = tuned(&config());
    model
        .add_adapter("b", &config().target_modules(["fc2"]))
        .unwrap();
    model.set_active(&["default"]).unwrap();
    let status = model.model_status();
    // `b` has other layers, in which nothing acts; the model is enabled all the same, as in PEFT.
    let enabled: Vec<bool> = model
        .layer_status()
        .iter()
        .map(|layer| layer.enabled)
        .collect();
    assert_eq!(enabled, [true, false, true, false]);
    assert_eq!(status.enabled, State::Uniform(true));
    assert_eq!(status.num_adapter_layers, 4);
    model.merge().unwrap();
    assert_eq!(
        model.model_status().merged_adapters,
        State::Uniform(vec!["default".into()])
    );
}

/// MiCA does not train B: its layers are half trained.
#[test]
fn an_adapter_of_which_a_part_is_trained_is_irregular() {
    let model = tuned(&config().init(Init::Mica));
    for layer in model.layer_status() {
        assert_eq!(
            layer.requires_grad["default"],
            State::Irregular,
            "{}",
            layer.name
        );
    }
    assert_eq!(
        model.model_status().requires_grad["default"],
        State::Irregular
    );
}

#[test]
fn parameters_are_counted_once_and_match_the_list() {
    let config = config()
        .train_bias(TrainBias::All)
        .modules_to_save(["norm"]);
    let model = tuned(&config);
    let status = model.model_status();
    let vars: usize = model
        .trainable_vars()
        .iter()
        .map(|var| var.elem_count())
        .sum();
    let all: usize = model
        .named_params()
        .iter()
        .map(|param| param.tensor.elem_count())
        .sum();
    assert_eq!((status.trainable_params, status.total_params), (vars, all));
    // A and B of two layers, the norm, and the biases of the six others.
    assert_eq!(vars, 2 * (12 + 12) + 12 + 6 * 6);
}

/// The state of a merged model's copies is that of the originals.
#[test]
fn who_is_trained_may_change_while_merged() {
    let mut model = tuned(&config().train_bias(TrainBias::LoraOnly));
    let paths = |model: &LoraNet| -> Vec<String> {
        let params = model.named_params().into_iter();
        let trained = params.filter(|param| param.is_trainable());
        trained.map(|param| param.path).collect()
    };
    let before = paths(&model);
    let output = values(&model.forward(&input()).unwrap()).unwrap();
    model.merge().unwrap();
    model.set_adapter_trainable("default", false).unwrap();
    model.unmerge().unwrap();
    assert!(model.trainable_vars().is_empty());
    model.merge().unwrap();
    model.set_adapter_trainable("default", true).unwrap();
    model.unmerge().unwrap();
    assert_eq!(paths(&model), before);
    assert_eq!(values(&model.forward(&input()).unwrap()).unwrap(), output);
    perturb(&model, 81);
    assert_ne!(values(&model.forward(&input()).unwrap()).unwrap(), output);
    let base = net().to_frozen().unwrap();
    assert_eq!(
        values(&model.disabled().unwrap().forward(&input()).unwrap()).unwrap(),
        values(&base.forward(&input()).unwrap()).unwrap()
    );
}
