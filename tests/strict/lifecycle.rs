//! What becomes of adapters: names that PEFT passes over, and states that it gets wrong.

use super::net::{config, input, net, perturb, refused, tuned};
use candle_core::Module;
use lora::{Combination, CombineOptions, Init, LoraModel, LoraModule};
use lora_tests::{assert_close, values};

#[test]
fn an_unknown_name_is_no_active_adapter() {
    let mut model = tuned(&config());
    refused(
        model.set_active(&["default", "french"]),
        &["`french`", "default"],
    );
    assert_eq!(model.active_adapters(), ["default"]);
}

#[test]
fn an_unknown_name_is_not_merged() {
    let mut model = tuned(&config());
    refused(model.merge_adapters(&["french"]), &["`french`"]);
    refused(model.unmerge_adapters(&["french"]), &["`french`"]);
    assert!(!model.is_merged());
}

#[test]
fn an_unknown_name_is_neither_deleted_nor_renamed_nor_scaled() {
    let mut model = tuned(&config());
    refused(model.delete_adapter("french"), &["`french`"]);
    refused(model.rename_adapter("french", "b"), &["`french`"]);
    refused(model.set_scale("french", 2.0), &["`french`"]);
    refused(model.set_adapter_trainable("french", true), &["`french`"]);
    refused(model.for_rows(&[Some("french")]), &["`french`"]);
    let dir = tempfile::tempdir().unwrap();
    let options = lora::peft::SaveOptions::new().adapters(["french"]);
    refused(model.save_adapter_with(dir.path(), &options), &["`french`"]);
}

#[test]
fn a_name_that_is_taken_is_refused() {
    let mut model = tuned(&config());
    model.add_adapter("b", &config()).unwrap();
    refused(
        model.add_adapter("default", &config()),
        &["`default` already"],
    );
    refused(model.rename_adapter("b", "default"), &["`default` already"]);
    let dir = tempfile::tempdir().unwrap();
    tuned(&config()).save_adapter(dir.path()).unwrap();
    refused(model.load_adapter_as("b", dir.path()), &["`b` already"]);
    let options = CombineOptions::default();
    let combined = model.add_weighted_adapter("b", &[("default", 1.)], Combination::Cat, &options);
    refused(combined, &["`b` already"]);
}

#[test]
fn a_name_is_active_once() {
    let mut model = tuned(&config());
    refused(
        model.set_active(&["default", "default"]),
        &["`default` is named twice"],
    );
}

#[test]
fn a_merged_model_is_not_changed_behind_its_back() {
    let mut model = tuned(&config());
    model.add_adapter("b", &config()).unwrap();
    model.merge().unwrap();
    refused(model.set_active(&["b"]), &["merged", "unmerge()"]);
    refused(model.delete_adapter("default"), &["`default` is merged"]);
    refused(model.set_scale("default", 2.0), &["`default` is merged"]);
    refused(model.add_adapter("c", &config()), &["merged"]);
    refused(model.for_rows(&[None]), &["merged"]);
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter(dir.path()).unwrap();
    refused(model.load_adapter(dir.path()), &["merged"]);
    refused(model.hot_swap("default", dir.path()), &["merged"]);
    // Another one may go.
    model.delete_adapter("b").unwrap();
    assert_eq!(model.merged_adapters(), ["default"]);
}

#[test]
fn a_merged_model_is_saved_and_loaded_as_if_it_were_not() {
    let mut model = tuned(&config());
    let expected = model.forward(&input()).unwrap();
    model.merge().unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter(dir.path()).unwrap();
    let loaded = net().with_adapter(dir.path()).unwrap();
    assert_close(
        "loaded",
        &loaded.forward(&input()).unwrap(),
        &expected,
        1e-6,
    );
    // On the merged base it would act twice: that is another model.
    let merged = model.to_base().unwrap().with_adapter(dir.path()).unwrap();
    assert!(
        lora_tests::relative_error(&merged.forward(&input()).unwrap(), &expected).unwrap() > 1e-3
    );
}

#[test]
fn without_adapters_a_model_is_its_base() {
    let mut model = tuned(&config());
    model.delete_adapter("default").unwrap();
    assert!(model.adapter_names().is_empty() && model.active_adapters().is_empty());
    let base = net().to_frozen().unwrap().forward(&input()).unwrap();
    assert_eq!(
        values(&model.forward(&input()).unwrap()).unwrap(),
        values(&base).unwrap()
    );
    let dir = tempfile::tempdir().unwrap();
    refused(model.save_adapter(dir.path()), &["no adapter"]);
    refused(model.load_adapter(dir.path()), &[]);
}

/// PEFT matches the patterns of a swapped adapter against the wrong names.
#[test]
fn a_hot_swap_heeds_patterns() {
    let dir = tempfile::tempdir().unwrap();
    let patterns = config()
        .rank_pattern("0.fc1", 3)
        .alpha_pattern("1.fc1", 9.0);
    let mut other = tuned(&patterns.use_rslora(true));
    other.save_adapter(dir.path()).unwrap();
    other.eval();
    let expected = other.forward(&input()).unwrap();
    let mut model = tuned(&config());
    model.hot_swap("default", dir.path()).unwrap();
    model.eval();
    assert_close(
        "swapped",
        &model.forward(&input()).unwrap(),
        &expected,
        1e-6,
    );
    assert_eq!(model.active_adapters(), ["default"]);
}

#[test]
fn a_hot_swap_that_fails_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = tuned(&config());
    let before = values(&model.forward(&input()).unwrap()).unwrap();
    refused(
        model.hot_swap("default", dir.path()),
        &["adapter_config.json"],
    );
    assert_eq!(values(&model.forward(&input()).unwrap()).unwrap(), before);
    assert_eq!(model.adapter_names(), ["default"]);
}

/// PEFT freezes all parameters whose path holds the name: with "e" that is everything.
#[test]
fn a_combined_adapter_freezes_nothing_else() {
    let mut model = tuned(&config());
    model.add_adapter("b", &config()).unwrap();
    let trained = model.trainable_vars().len();
    let options = CombineOptions::default();
    let named = [("default", 1.0), ("b", 1.0)];
    model
        .add_weighted_adapter("e", &named, Combination::Linear, &options)
        .unwrap();
    assert_eq!(model.trainable_vars().len(), trained);
    assert_eq!(model.active_adapters(), ["default"]);
}

/// In PEFT the base loses values again when PiSSA adapters are combined.
#[test]
fn a_combination_leaves_the_base_alone() {
    let mut model = tuned(&config().init(Init::Pissa));
    let before = values(&model.forward(&input()).unwrap()).unwrap();
    let base = values(&model.disabled().unwrap().forward(&input()).unwrap()).unwrap();
    let options = CombineOptions::default();
    let named = [("default", 1.0)];
    model
        .add_weighted_adapter("b", &named, Combination::Cat, &options)
        .unwrap();
    assert_eq!(values(&model.forward(&input()).unwrap()).unwrap(), before);
    let disabled = model.disabled().unwrap();
    assert_eq!(values(&disabled.forward(&input()).unwrap()).unwrap(), base);
}

/// The base weight of PiSSA is another only while its adapter is active.
#[test]
fn an_adapter_that_changed_its_base_is_merged_while_it_is_active() {
    let mut model = tuned(&config().init(Init::Pissa));
    model.add_adapter("b", &config()).unwrap();
    model.set_active(&["b"]).unwrap();
    refused(
        model.merge_adapters(&["default"]),
        &["`default`", "fc1", "active"],
    );
    model.set_active(&["default"]).unwrap();
    let before = model.forward(&input()).unwrap();
    model.merge_adapters(&["default"]).unwrap();
    assert_close("merged", &model.forward(&input()).unwrap(), &before, 1e-5);
}

/// DoRA multiplies what came before it: merged in another order it would compute something else.
#[test]
fn an_order_that_changes_the_result_is_not_merged() {
    let mut model = tuned(&config().use_dora(true));
    model.add_adapter("b", &config()).unwrap();
    model.set_active(&["default", "b"]).unwrap();
    perturb(&model, 7);
    let before = model.forward(&input()).unwrap();
    refused(model.merge_adapters(&["b"]), &["DoRA", "order"]);
    model.merge_adapters(&["default"]).unwrap();
    assert_close("first", &model.forward(&input()).unwrap(), &before, 1e-5);
    model.merge().unwrap();
    assert_close("both", &model.forward(&input()).unwrap(), &before, 1e-5);

    let mut model = tuned(&config().lora_bias(true));
    model.add_adapter("b", &config().use_dora(true)).unwrap();
    model.set_active(&["default", "b"]).unwrap();
    perturb(&model, 7);
    let before = model.forward(&input()).unwrap();
    refused(model.merge_adapters(&["default"]), &["DoRA", "order"]);
    model.merge().unwrap();
    assert_close("both", &model.forward(&input()).unwrap(), &before, 1e-5);
}

#[test]
fn a_view_for_rows_only_computes() {
    let mut model = tuned(&config());
    model.add_adapter("b", &config()).unwrap();
    let mut view = model.for_rows(&[Some("default"), None, Some("b")]).unwrap();
    let words = &["view for the rows"][..];
    refused(view.merge(), words);
    refused(view.set_active(&["b"]), words);
    refused(view.to_base(), words);
    refused(view.for_rows(&[None]), words);
    let disabled = view.disabled().unwrap().forward(&input()).unwrap();
    let base = model.disabled().unwrap().forward(&input()).unwrap();
    assert_eq!(values(&disabled).unwrap(), values(&base).unwrap());
}

#[test]
fn what_differs_in_kind_is_not_combined() {
    let options = CombineOptions::default();
    let named = [("default", 1.0), ("b", 1.0)];
    for (first, second) in [
        (config().lora_bias(true), config()),
        (config().use_dora(true), config()),
        (config(), config().use_dora(true)),
    ] {
        let mut model = tuned(&first);
        model.add_adapter("b", &second).unwrap();
        let combined = model.add_weighted_adapter("c", &named, Combination::Cat, &options);
        refused(combined, &["fc1", "cannot be combined"]);
        assert_eq!(model.adapter_names(), ["default", "b"]);
    }
}

/// What an adapter trains in full is no low-rank update.
#[test]
fn trained_modules_are_not_combined() {
    let mut model = tuned(&config().modules_to_save(["norm"]));
    let options = CombineOptions::default();
    let combined = model.add_weighted_adapter("b", &[("default", 1.0)], Combination::Cat, &options);
    refused(combined, &["`default`", "norm"]);
}

#[test]
fn ranks_that_differ_are_named() {
    let mut model = tuned(&config());
    let more = config().rank_pattern("1.fc1", 3);
    model.add_adapter("b", &more).unwrap();
    let options = CombineOptions::default();
    let named = [("default", 1.0), ("b", 1.0)];
    let combined = model.add_weighted_adapter("c", &named, Combination::Linear, &options);
    refused(combined, &["model.layers.1.fc1", "2", "3"]);
    assert_eq!(model.adapter_names(), ["default", "b"]);
}

#[test]
fn one_copy_of_a_module_is_active() {
    let config = config().modules_to_save(["head"]);
    let mut model = tuned(&config);
    model.add_adapter("b", &config).unwrap();
    refused(
        model.set_active(&["default", "b"]),
        &["`default` and `b`", "`head`"],
    );
}

/// The second adapter's copies are of the base, not of what the first made of it.
#[test]
fn a_further_adapter_starts_from_the_base() {
    for init in [Init::Default, Init::Pissa, Init::Olora] {
        let config = config()
            .init(init)
            .modules_to_save(["head"])
            .train_bias(lora::TrainBias::LoraOnly);
        let mut model = tuned(&config);
        let expected = values(&model.forward(&input()).unwrap()).unwrap();
        model.add_adapter("b", &config).unwrap();
        assert_eq!(values(&model.forward(&input()).unwrap()).unwrap(), expected);
        model.set_active(&["b"]).unwrap();
        let base = net().to_frozen().unwrap().forward(&input()).unwrap();
        assert_close("fresh", &model.forward(&input()).unwrap(), &base, 1e-5);
        // Neither trains the other.
        let before = values(&model.forward(&input()).unwrap()).unwrap();
        model.set_active(&["default"]).unwrap();
        perturb(&model, 61);
        model.set_active(&["b"]).unwrap();
        assert_eq!(values(&model.forward(&input()).unwrap()).unwrap(), before);
    }
}

/// An adapter with copies goes while another is merged into a layer that holds one.
#[test]
fn a_copy_goes_while_another_adapter_is_merged() {
    let mut model = tuned(&config());
    let base = model.forward(&input()).unwrap();
    let copies = config()
        .target_modules(["fc2"])
        .modules_to_save(["fc1", "head"]);
    model.add_adapter("b", &copies).unwrap();
    model.set_active(&["b"]).unwrap();
    perturb(&model, 71);
    model.merge_adapters(&["default"]).unwrap();
    refused(model.delete_adapter("default"), &["merged"]);
    model.merge_adapters(&["b"]).unwrap();
    model.unmerge_adapters(&["b"]).unwrap();
    model.delete_adapter("b").unwrap();
    assert_close("merged", &model.forward(&input()).unwrap(), &base, 1e-5);
    model.unmerge().unwrap();
    let plain = net().to_frozen().unwrap().forward(&input()).unwrap();
    assert_eq!(
        values(&model.forward(&input()).unwrap()).unwrap(),
        values(&plain).unwrap()
    );
}
