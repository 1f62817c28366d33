//! What must hold for a model, whatever is adapted, and how.

use super::net::{Case, LoraNet, all_values, case, deltas, ids, low_rank, perturb};
use candle_core::{DType, Module, Tensor, TensorId};
use lora::{Combination, CombineOptions, LoraModel, LoraModule, Part, Role};
use lora_tests::{absolute_error, cases, relative_error, values};
use proptest::prelude::*;

const F32: DType = DType::F32;
const F64: DType = DType::F64;

fn error(a: &Tensor, b: &Tensor) -> f64 {
    let error = relative_error(a, b).unwrap();
    if error.is_nan() { f64::INFINITY } else { error }
}

fn same_values(a: &Tensor, b: &Tensor) -> bool {
    values(a).unwrap() == values(b).unwrap()
}

fn tensor_ids<M: LoraModule>(model: &M) -> Vec<(String, TensorId)> {
    let params = model.named_params().into_iter();
    params.map(|p| (p.path, p.tensor.id())).collect()
}

/// What the number format allows.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-9,
        DType::F32 => 2e-4,
        _ => 6e-2,
    }
}

fn dtype() -> impl Strategy<Value = DType> {
    prop_oneof![3 => Just(F32), 2 => Just(F64), 1 => Just(DType::BF16)]
}

fn name() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        Just("l"),
        Just("lora_A"),
        Just("weight"),
        Just("default2"),
        Just("base_layer"),
        Just("modules_to_save"),
        Just("fc1"),
        Just("bias"),
    ]
}

/// The fresh model computes what the base does, and the disabled one is the base.
fn starts_as_the_base(case: &Case, dtype: DType) -> Result<(), TestCaseError> {
    let base = case.net(dtype);
    let x = ids(1);
    let expected = base.to_frozen().unwrap().forward(&x).unwrap();
    let model = base.to_lora(&case.config).unwrap();
    let fresh = error(&model.forward(&x).unwrap(), &expected);
    prop_assert!(fresh < tolerance(dtype).max(1e-5), "fresh {fresh:e}");
    perturb(&model, 3);
    let adapted = model.forward(&x).unwrap();
    prop_assert!(error(&adapted, &expected) > 1e-5, "no effect");
    let disabled = model.disabled().unwrap();
    prop_assert!(same_values(&disabled.forward(&x).unwrap(), &expected));
    prop_assert!(disabled.trainable_vars().is_empty());
    prop_assert!(same_values(&model.forward(&x).unwrap(), &adapted));
    Ok(())
}

/// Merging is the same sum, twice is once, and unmerging gives the very tensors back.
fn merges(case: &Case, dtype: DType) -> Result<(), TestCaseError> {
    let base = case.net(dtype);
    let x = ids(2);
    let mut model = base.to_lora(&case.config).unwrap();
    perturb(&model, 5);
    model.eval();
    let expected = model.forward(&x).unwrap();
    let before = tensor_ids(&model);
    model.merge().unwrap();
    let merged = tensor_ids(&model);
    let is_close = error(&model.forward(&x).unwrap(), &expected);
    prop_assert!(is_close < tolerance(dtype), "merged {is_close:e}");
    model.merge().unwrap();
    prop_assert_eq!(tensor_ids(&model), merged);
    let back = model.to_base().unwrap().to_frozen().unwrap();
    let is_close = error(&back.forward(&x).unwrap(), &expected);
    prop_assert!(is_close < tolerance(dtype), "to_base {is_close:e}");
    let disabled = model.disabled().unwrap();
    let plain = base.to_frozen().unwrap();
    prop_assert!(same_values(
        &disabled.forward(&x).unwrap(),
        &plain.forward(&x).unwrap()
    ));
    // Who is trained may be changed meanwhile; the originals are meant.
    model.set_adapter_trainable("default", false).unwrap();
    model.set_adapter_trainable("default", true).unwrap();
    model.unmerge().unwrap();
    let trained = model.trainable_vars().len();
    prop_assert!(same_values(&model.forward(&x).unwrap(), &expected));
    model.set_active(&["default"]).unwrap();
    prop_assert_eq!(model.trainable_vars().len(), trained);
    let mut again = base.to_lora(&case.config).unwrap();
    let before_again = tensor_ids(&again);
    again.merge().unwrap();
    again.unmerge().unwrap();
    prop_assert_eq!(tensor_ids(&again), before_again);
    prop_assert_eq!(before.len(), tensor_ids(&model).len());
    Ok(())
}

/// A step changes what is trained and nothing else, and what is trained is the adapter's.
fn trains(case: &Case) -> Result<(), TestCaseError> {
    let base = case.net(F32);
    let mut model = base.to_lora(&case.config).unwrap();
    let before = all_values(&model);
    let biases = case.config.train_bias;
    for param in model.named_params() {
        let saved = case.config.modules_to_save.iter();
        let saved = saved.clone().any(|name| param.layer() == name);
        let targets = match &case.config.target_modules {
            Some(lora::Targets::Names(names)) => names.clone(),
            _ => Vec::new(),
        };
        let is_bias = param.name() == "bias"
            && match biases {
                lora::TrainBias::None => false,
                lora::TrainBias::LoraOnly => targets.iter().any(|t| t == param.layer()),
                lora::TrainBias::All => true,
            };
        let frozen_b =
            case.config.init == lora::Init::Mica && param.role == Role::Adapter(lora::Part::B);
        let expected = match param.role {
            Role::Adapter(_) => !frozen_b,
            _ => saved || is_bias,
        };
        prop_assert_eq!(param.is_trainable(), expected, "{}", param.path);
    }
    perturb(&model, 1);
    let loss = model.forward(&ids(3)).unwrap().sqr().unwrap();
    let loss = loss.sum_all().unwrap();
    let grads = model.backward(&loss).unwrap();
    use candle_nn::Optimizer;
    let mut sgd = candle_nn::SGD::new(model.trainable_vars(), 1e-3).unwrap();
    sgd.step(&grads).unwrap();
    let after = all_values(&model);
    let changed = before
        .iter()
        .zip(&after)
        .filter(|(old, new)| old.3 != new.3)
        .map(|(old, _)| old.2);
    let changed: Vec<bool> = changed.collect();
    prop_assert!(changed.iter().all(|trained| *trained));
    prop_assert_eq!(changed.len(), before.iter().filter(|old| old.2).count());
    model.eval();
    Ok(())
}

/// Saved and loaded, under whatever names, adapters compute the same.
fn saves(case: &Case, other: &Case, names: [&str; 2], dtype: DType) -> Result<(), TestCaseError> {
    let base = case.net(dtype);
    let x = ids(4);
    let mut model = base.to_lora(&case.config).unwrap();
    perturb(&model, 7);
    model.add_adapter(names[0], &other.config).unwrap();
    model.set_active(&[names[0]]).unwrap();
    perturb(&model, 9);
    model.eval();
    let directory = tempfile::tempdir().unwrap();
    model.save_adapter(directory.path()).unwrap();
    let mut expected = Vec::new();
    for name in ["default", names[0]] {
        model.set_active(&[name]).unwrap();
        expected.push((name, model.forward(&x).unwrap()));
    }
    let mut further = base.to_frozen().unwrap();
    for (name, expected) in &expected {
        let place = match *name {
            "default" => directory.path().to_path_buf(),
            name => directory.path().join(name),
        };
        let loaded = base.with_adapter(&place).unwrap();
        let is_close = error(&loaded.forward(&x).unwrap(), expected);
        prop_assert!(is_close < tolerance(dtype), "{name}: {is_close:e}");
        let new = match *name {
            "default" => names[1],
            name => name,
        };
        further.load_adapter_as(new, &place).unwrap();
        further.set_active(&[new]).unwrap();
        further.eval();
        let is_close = error(&further.forward(&x).unwrap(), expected);
        prop_assert!(is_close < tolerance(dtype), "{new}: {is_close:e}");
    }
    // A hot swap is a fresh load.
    let place = directory.path().join(names[0]);
    further.hot_swap(names[1], &place).unwrap();
    further.set_active(&[names[1]]).unwrap();
    let is_close = error(&further.forward(&x).unwrap(), &expected[1].1);
    prop_assert!(is_close < tolerance(dtype), "swapped: {is_close:e}");
    Ok(())
}

/// Adapters come and go without a trace, under another name they are the same.
fn comes_and_goes(case: &Case, other: &Case, name: &str) -> Result<(), TestCaseError> {
    let base = case.net(F32);
    let x = ids(5);
    let mut model = base.to_lora(&case.config).unwrap();
    perturb(&model, 11);
    model.eval();
    let (before, were) = (all_values(&model), tensor_ids(&model));
    let expected = model.forward(&x).unwrap();
    model.add_adapter(name, &other.config).unwrap();
    prop_assert!(same_values(&model.forward(&x).unwrap(), &expected));
    // It starts from the base, whatever the active adapter made of it.
    model.set_active(&[name]).unwrap();
    model.eval();
    let plain = base.to_frozen().unwrap().forward(&x).unwrap();
    let fresh = error(&model.forward(&x).unwrap(), &plain);
    prop_assert!(fresh < 1e-4, "added: {fresh:e}");
    perturb(&model, 13);
    let of_other = model.forward(&x).unwrap();
    model.rename_adapter(name, "renamed").unwrap();
    prop_assert_eq!(model.active_adapters(), ["renamed"]);
    prop_assert!(same_values(&model.forward(&x).unwrap(), &of_other));
    model.set_active(&["default"]).unwrap();
    prop_assert!(same_values(&model.forward(&x).unwrap(), &expected));
    model.delete_adapter("renamed").unwrap();
    prop_assert_eq!(&all_values(&model), &before);
    let paths = |ids: &[(String, TensorId)]| -> Vec<String> {
        ids.iter().map(|(path, _)| path.clone()).collect()
    };
    prop_assert_eq!(paths(&tensor_ids(&model)), paths(&were));
    prop_assert!(same_values(&model.forward(&x).unwrap(), &expected));
    Ok(())
}

/// Each row of a batch computes what it would alone.
fn rows(case: &Case, other: &Case, picks: &[usize]) -> Result<(), TestCaseError> {
    let plain = |case: &Case| {
        let mut config = case.config.clone();
        config.target_parameters.clear();
        config.modules_to_save.retain(|name| name != "norm");
        if config.train_bias == lora::TrainBias::All {
            config.train_bias = lora::TrainBias::LoraOnly;
        }
        config
    };
    let base = case.net(F32);
    let x = ids(6);
    let mut model = base.to_lora(&plain(case)).unwrap();
    perturb(&model, 15);
    model.add_adapter("other", &plain(other)).unwrap();
    model.set_active(&["other"]).unwrap();
    perturb(&model, 17);
    model.eval();
    let mut outputs = vec![model.disabled().unwrap().forward(&x).unwrap()];
    for name in ["default", "other"] {
        model.set_active(&[name]).unwrap();
        outputs.push(model.forward(&x).unwrap());
    }
    let names: Vec<Option<&str>> = picks
        .iter()
        .map(|pick| [None, Some("default"), Some("other")][*pick])
        .collect();
    let mixed = model.for_rows(&names).unwrap().forward(&x).unwrap();
    for (row, pick) in picks.iter().enumerate() {
        let (mine, alone) = (mixed.get(row).unwrap(), outputs[*pick].get(row).unwrap());
        let is_close = error(&mine, &alone);
        prop_assert!(is_close < 1e-5, "row {row}: {is_close:e}");
    }
    Ok(())
}

/// In another dtype and back everything is as it was, parked copies too.
fn converts(case: &Case, other: &Case) -> Result<(), TestCaseError> {
    let base = case.net(F32);
    let x = ids(7);
    let mut model = base.to_lora(&case.config).unwrap();
    perturb(&model, 19);
    model.add_adapter("other", &other.config).unwrap();
    model.set_active(&["other"]).unwrap();
    perturb(&model, 21);
    model.eval();
    let mut wide = model.to_dtype(F64).unwrap();
    let mut back = wide.to_dtype(F32).unwrap();
    let mut moved = model.to_device(&candle_core::Device::Cpu).unwrap();
    prop_assert_eq!(all_values(&back), all_values(&model));
    for name in ["other", "default"] {
        for each in [&mut model, &mut wide, &mut back, &mut moved] {
            each.set_active(&[name]).unwrap();
        }
        prop_assert_eq!(all_values(&back), all_values(&model));
        let expected = model.forward(&x).unwrap();
        // The memory layout of a transposed weight may be another, and rounds otherwise.
        prop_assert!(error(&back.forward(&x).unwrap(), &expected) < 1e-5);
        prop_assert!(error(&moved.forward(&x).unwrap(), &expected) < 1e-5);
        let wide = wide.forward(&x).unwrap();
        prop_assert_eq!(wide.dtype(), F64);
        prop_assert!(error(&wide, &expected) < 1e-4);
        prop_assert_eq!(
            model.summary().totals(),
            back.summary().totals(),
            "{}",
            name
        );
    }
    prop_assert!(same_values(
        &back.disabled().unwrap().forward(&x).unwrap(),
        &base.to_frozen().unwrap().forward(&x).unwrap()
    ));
    Ok(())
}

/// Why `default` and `other` of the model cannot be combined: a part of the message.
fn refusal(model: &LoraNet, case: &Case, other: &Case) -> Option<&'static str> {
    let trains_more = ["default", "other"].iter().any(|name| {
        let mut model = model.clone();
        model.set_active(&[*name]).unwrap();
        let params = model.named_params();
        let mut trained = params.iter().filter(|param| param.is_trainable());
        trained.any(|param| matches!(param.role, Role::Base | Role::Adapter(Part::Tokens)))
    });
    if trains_more {
        return Some("own parameters, which cannot be combined");
    }
    let layers = |name: &str| deltas(model, name).into_iter().map(|(path, _)| path);
    let mixed = case.config.use_dora != other.config.use_dora
        && layers("default").any(|layer| layers("other").any(|path| path == layer));
    let has_experts = layers("default")
        .chain(layers("other"))
        .any(|path| path == "experts");
    let has_bias = case.config.lora_bias || other.config.lora_bias;
    (mixed || has_experts || has_bias).then_some("ensure_weight_tying cannot be combined")
}

/// The scale is linear, and a combination by `cat` is the weighted sum.
fn sums(case: &Case, other: &Case, weights: [f64; 2]) -> Result<(), TestCaseError> {
    let mut model = case.net(F64).to_lora(&case.config).unwrap();
    perturb(&model, 23);
    model.add_adapter("other", &other.config).unwrap();
    model.set_active(&["other"]).unwrap();
    perturb(&model, 25);
    let once = deltas(&model, "other");
    model.set_scale("other", 3.0).unwrap();
    for ((path, scaled), (_, once)) in deltas(&model, "other").iter().zip(&once) {
        let tripled = (once * 3.0).unwrap();
        prop_assert!(error(scaled, &tripled) < 1e-12, "{path}");
    }
    let named = [("default", weights[0]), ("other", weights[1])];
    let refused = refusal(&model, case, other);
    let before = all_values(&model);
    let options = CombineOptions::default();
    let result = model.add_weighted_adapter("sum", &named, Combination::Cat, &options);
    if let Some(refused) = refused {
        let message = result.unwrap_err().to_string();
        prop_assert!(message.contains(refused), "{message}");
        prop_assert_eq!(all_values(&model), before);
        return Ok(());
    }
    result.unwrap();
    let (first, second) = (deltas(&model, "default"), deltas(&model, "other"));
    let combined = deltas(&model, "sum");
    let layers = first.iter().chain(&second).map(|(path, _)| *path);
    let layers: std::collections::BTreeSet<_> = layers.collect();
    prop_assert_eq!(layers.len(), combined.len());
    if !case.is_low_rank() || !other.is_low_rank() {
        return Ok(());
    }
    for (path, sum) in &combined {
        let part = |all: &[(&str, Tensor)], weight: f64| {
            let found = all.iter().find(|(known, _)| known == path);
            match found {
                Some((_, delta)) => (delta * weight).unwrap(),
                None => sum.zeros_like().unwrap(),
            }
        };
        let expected = (part(&first, weights[0]) + part(&second, weights[1])).unwrap();
        prop_assert!(absolute_error(sum, &expected).unwrap() < 1e-9, "{path}");
    }
    Ok(())
}

/// The same model for both: the second's settings with the first's sizes.
fn fit(case: &Case, other: Case) -> Case {
    let mut other = Case {
        groups: case.groups,
        dilation: case.dilation,
        tied: case.tied,
        ..other
    };
    if case.tied {
        other.config.modules_to_save.retain(|name| name != "head");
        if other.config.init.changes_base() {
            other.config.trainable_token_indices.clear();
        }
    }
    other
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn a_fresh_adapter_has_no_effect_and_a_disabled_one_none_at_all(
        case in case(), dtype in dtype()
    ) {
        starts_as_the_base(&case, dtype)?;
    }

    #[test]
    fn merging_computes_the_same_and_can_be_undone(case in case(), dtype in dtype()) {
        merges(&case, dtype)?;
    }

    #[test]
    fn a_step_changes_what_is_the_adapters(case in case()) {
        trains(&case)?;
    }

    #[test]
    fn files_hold_all(
        (case, other) in (case(), case()),
        (name, dtype) in (name(), dtype()),
    ) {
        saves(&case, &fit(&case, other), [name, "lora"], dtype)?;
    }

    #[test]
    fn adapters_leave_no_trace((case, other) in (case(), case()), name in name()) {
        comes_and_goes(&case, &fit(&case, other), name)?;
    }

    #[test]
    fn rows_have_their_own_adapter(
        (case, other) in (case(), case()),
        picks in proptest::collection::vec(0usize..3, 3),
    ) {
        rows(&case, &fit(&case, other), &picks)?;
    }

    #[test]
    fn conversions_keep_all((case, other) in (case(), case())) {
        converts(&case, &fit(&case, other))?;
    }

    #[test]
    fn scales_and_sums_are_linear(
        (case, other) in prop_oneof![(low_rank(), low_rank()), (case(), case())],
        weights in [-2.0..2.0f64, -2.0..2.0f64],
    ) {
        sums(&case, &fit(&case, other), weights)?;
    }
}
