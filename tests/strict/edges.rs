//! The rest of PEFT's sharp edges.

use super::net::{config, input, linear, net, net_of, perturb, refused, tuned, var};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Embedding, Linear};
use lora::optim::AdamW;
use lora::{Adapted, Combination, CombineOptions, Init, LoraConfig, LoraModel, LoraModule};
use lora::{Role, TrainBias};
use lora_tests::{absolute_error, assert_close, fixed, values};

#[test]
fn sixteen_bit_bases_have_wide_adapters() {
    for dtype in [DType::BF16, DType::F16] {
        let model = net_of(dtype).to_lora(&config()).unwrap();
        for param in model.named_params() {
            let expected = match param.role {
                Role::Adapter(_) => DType::F32,
                _ => dtype,
            };
            assert_eq!(param.tensor.dtype(), expected, "{}", param.path);
        }
    }
}

#[test]
fn merging_scales_the_bias_of_b() {
    let model = linear(1, DType::F64);
    let mut model = model
        .to_lora(&LoraConfig::new(2).alpha(6.0).lora_bias(true))
        .unwrap();
    perturb(&model, 3);
    let own = var(&model, "lora_B.default.bias")
        .as_tensor()
        .copy()
        .unwrap();
    let before = linear(1, DType::F64).bias().unwrap().clone();
    model.merge().unwrap();
    let expected = (before + (own * 3.0).unwrap()).unwrap();
    assert_close("bias", model.bias().unwrap(), &expected, 1e-12);
}

#[test]
fn merging_a_bias_of_b_needs_a_bias() {
    let base = Linear::new(fixed((4, 3), DType::F32, 1), None);
    let mut model = base.to_lora(&LoraConfig::new(2).lora_bias(true)).unwrap();
    refused(model.merge(), &["bias", "none"]);
}

#[test]
fn merging_keeps_dilation() {
    let settings = Conv1dConfig {
        dilation: 2,
        padding: 2,
        groups: 2,
        ..Default::default()
    };
    let base = Conv1d::new(fixed((4, 2, 3), DType::F64, 1), None, settings);
    let mut model = base.to_lora(&LoraConfig::new(2)).unwrap();
    perturb(&model, 3);
    let x = fixed((2, 4, 9), DType::F64, 4);
    let before = model.forward(&x).unwrap();
    model.merge().unwrap();
    assert_close("merged", &model.forward(&x).unwrap(), &before, 1e-12);
}

#[test]
fn what_is_active_acts_beside_what_is_merged() {
    let mut model = tuned(&config());
    model.add_adapter("b", &config()).unwrap();
    model.set_active(&["b"]).unwrap();
    perturb(&model, 51);
    model.set_active(&["default", "b"]).unwrap();
    let both = model.forward(&input()).unwrap();
    model.set_active(&["b"]).unwrap();
    model.merge_adapters(&["default"]).unwrap();
    assert_close("both", &model.forward(&input()).unwrap(), &both, 1e-5);
}

#[test]
fn disabling_gives_the_base_with_trained_biases() {
    let model = tuned(
        &config()
            .train_bias(TrainBias::All)
            .modules_to_save(["head"]),
    );
    let base = net().to_frozen().unwrap().forward(&input()).unwrap();
    let disabled = model.disabled().unwrap().forward(&input()).unwrap();
    assert_eq!(values(&disabled).unwrap(), values(&base).unwrap());
    assert!(absolute_error(&model.forward(&input()).unwrap(), &base).unwrap() > 1e-3);
}

#[test]
fn names_with_dots_or_separators_are_refused() {
    let mut model = tuned(&config());
    for name in ["a.b", "a/b", "..", ""] {
        refused(model.add_adapter(name, &config()), &["name of an adapter"]);
        refused(
            model.rename_adapter("default", name),
            &["name of an adapter"],
        );
    }
    assert_eq!(model.adapter_names(), ["default"]);
}

#[test]
fn an_optimiser_of_other_variables_is_noticed() {
    let model = tuned(&config());
    let moved = model.to_dtype(DType::F64).unwrap();
    let mut optimizer = AdamW::for_model(&model, Default::default()).unwrap();
    let x = input().to_dtype(DType::F64).unwrap();
    let loss = moved.forward(&x).unwrap().sum_all().unwrap();
    let grads = moved.backward(&loss).unwrap();
    let before: Vec<_> = model
        .trainable_vars()
        .iter()
        .map(|v| values(v).unwrap())
        .collect();
    use candle_nn::Optimizer;
    refused(
        optimizer.step(&grads).map_err(lora::Error::from),
        &["none of the optimiser's", "make a new optimiser"],
    );
    let after: Vec<_> = model
        .trainable_vars()
        .iter()
        .map(|v| values(v).unwrap())
        .collect();
    assert_eq!(before, after);
    // The backward pass of a model with another's loss says so.
    refused(model.backward(&loss), &["lora_A.default.weight"]);
}

#[test]
fn an_optimiser_goes_on_after_adapters_were_switched() {
    let mut model = tuned(&config().modules_to_save(["norm"]));
    model.add_adapter("other", &config()).unwrap();
    let ids = |model: &super::net::LoraNet| -> Vec<_> {
        let vars = model.trainable_vars();
        vars.iter().map(|var| var.as_tensor().id()).collect()
    };
    let before = ids(&model);
    let values_before: Vec<_> = model
        .trainable_vars()
        .iter()
        .map(|v| values(v).unwrap())
        .collect();
    model.set_active(&["other"]).unwrap();
    assert!(ids(&model).iter().all(|id| !before.contains(id)));
    model.set_active(&["default"]).unwrap();
    assert_eq!(ids(&model), before);
    model.set_adapter_trainable("default", false).unwrap();
    assert!(model.trainable_vars().is_empty());
    model.set_adapter_trainable("default", true).unwrap();
    assert_eq!(ids(&model), before);
    let values_after: Vec<_> = model
        .trainable_vars()
        .iter()
        .map(|v| values(v).unwrap())
        .collect();
    assert_eq!(values_after, values_before);
}

#[derive(Clone, Debug, LoraModel)]
struct Tied {
    embed: Embedding,
    head: Linear,
}

fn tied() -> Tied {
    let table = fixed((9, 6), DType::F32, 1);
    Tied {
        embed: Embedding::new(table.clone(), 6),
        head: Linear::new(table, None),
    }
}

#[test]
fn merging_one_of_two_tied_weights_leaves_the_other() {
    let mut model = tied()
        .to_lora(&LoraConfig::new(2).target_modules(["embed"]))
        .unwrap();
    perturb(&model, 3);
    let ids = Tensor::new(&[3u32, 1], &Device::Cpu).unwrap();
    let before = model.embed.forward(&ids).unwrap();
    model.merge().unwrap();
    assert_close("embed", &model.embed.forward(&ids).unwrap(), &before, 1e-6);
    let base = fixed((9, 6), DType::F32, 1);
    assert_eq!(values(model.head.weight()).unwrap(), values(&base).unwrap());
    model.unmerge().unwrap();
    let frozen = tied().to_frozen().unwrap();
    assert_eq!(frozen.embed.embeddings().id(), frozen.head.weight().id());
    assert_eq!(
        model.embed.unmerged_weight().id(),
        model.head.unmerged_weight().id()
    );
}

/// A merged head keeps its own update when the embedding that it shares is looked at again.
#[test]
fn a_merged_head_that_shares_a_trained_embedding_keeps_its_update() {
    let config = LoraConfig::new(2)
        .target_modules(["head"])
        .modules_to_save(["embed"])
        .ensure_weight_tying(true);
    let mut model = tied().to_lora(&config).unwrap();
    perturb(&model, 3);
    let xs = fixed((2, 6), DType::F32, 5);
    let before = model.head.forward(&xs).unwrap();
    model.merge().unwrap();
    model.rename_adapter("default", "other").unwrap();
    assert_close("merged", &model.head.forward(&xs).unwrap(), &before, 1e-5);
    model.set_adapter_trainable("other", false).unwrap();
    assert_close("frozen", &model.head.forward(&xs).unwrap(), &before, 1e-5);
    model.unmerge().unwrap();
    assert_close("unmerged", &model.head.forward(&xs).unwrap(), &before, 1e-6);

    let pissa = config.init(Init::Pissa);
    refused(tied().to_lora(&pissa), &["`head`", "`embed`", "pissa"]);
}

/// PEFT only warns where it does not know the names of what it is to tie: the file then holds
/// nothing for the head, and the head computes with the base's weight.
#[test]
fn a_file_without_the_tie_that_its_configuration_asks_for() {
    let adapted = LoraConfig::new(2).target_modules(["embed"]);
    let trained = LoraConfig::new(2)
        .target_modules(["head"])
        .modules_to_save(["embed"]);
    for config in [adapted, trained] {
        let model = tied().to_lora(&config).unwrap();
        perturb(&model, 3);
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter(dir.path()).unwrap();
        let path = dir.path().join("adapter_config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let (off, on) = (
            "\"ensure_weight_tying\": false",
            "\"ensure_weight_tying\": true",
        );
        assert!(text.contains(off));
        std::fs::write(&path, text.replace(off, on)).unwrap();
        let loaded = tied().with_adapter(dir.path()).unwrap();
        let (ids, xs) = (
            Tensor::new(&[3u32, 1], &Device::Cpu).unwrap(),
            fixed((2, 6), DType::F32, 5),
        );
        for (loaded, model) in [
            (loaded.embed.forward(&ids), model.embed.forward(&ids)),
            (loaded.head.forward(&xs), model.head.forward(&xs)),
        ] {
            assert_close("loaded", &loaded.unwrap(), &model.unwrap(), 1e-7);
        }
    }
}

#[test]
fn a_tie_without_effect_is_named() {
    let config = config().ensure_weight_tying(true);
    refused(
        net().to_lora(&config),
        &["ensure_weight_tying", "no target"],
    );
    let head = LoraConfig::new(2)
        .target_modules(["head"])
        .ensure_weight_tying(true);
    refused(tied().to_lora(&head), &["`head`", "`embed`"]);
}

#[test]
fn rows_of_a_weight_that_loses_values_elsewhere_are_refused() {
    for init in [Init::Pissa, Init::Olora] {
        let config = LoraConfig::new(2)
            .target_modules(["head"])
            .init(init)
            .trainable_token_indices("embed", [1]);
        refused(
            tied().to_lora(&config),
            &["`head`", "`embed`", &init.to_string()],
        );
        let rows = LoraConfig::new(2).trainable_token_indices("embed", [1]);
        let mut model = tied().to_lora(&rows).unwrap();
        refused(model.add_adapter("b", &config), &["`head`", "`embed`"]);
        assert_eq!(model.adapter_names(), ["default"]);
    }
}

#[test]
fn a_row_beyond_the_table_is_named() {
    let config = LoraConfig::new(2).trainable_token_indices("embed", [1, 9, 1]);
    refused(
        tied().to_lora(&config),
        &["no row 9 of 9", "row 1 is named twice"],
    );
}

#[test]
fn merging_what_is_not_finite_leaves_the_model() {
    let mut model = tuned(&config());
    let b = var(&model, "model.layers.1.fc1.lora_B.default.weight");
    b.set(&(b.ones_like().unwrap() * f64::NAN).unwrap())
        .unwrap();
    let ids = |model: &super::net::LoraNet| -> Vec<_> {
        let params = model.named_params().into_iter();
        params.map(|param| param.tensor.id()).collect()
    };
    let before = ids(&model);
    refused(model.merge(), &["model.layers.1.fc1", "not finite"]);
    refused(model.to_base(), &["model.layers.1.fc1", "not finite"]);
    refused(model.merge_adapters(&["default"]), &["model.layers.1.fc1"]);
    assert_eq!(ids(&model), before);
    assert!(!model.is_merged());
    let dir = tempfile::tempdir().unwrap();
    refused(
        model.save_adapter(dir.path()),
        &["fc1.lora_B.weight", "not finite"],
    );
}

/// In bf16 PEFT rounds twice when it merges safely, and cannot undo it exactly.
#[test]
fn merging_in_sixteen_bits_rounds_once_and_is_undone_exactly() {
    let mut model = net_of(DType::BF16).to_lora(&config()).unwrap();
    perturb(&model, 3);
    let weight = |model: &super::net::LoraNet| {
        let params = model.named_params().into_iter();
        let mut params = params.filter(|param| param.path == "model.layers.0.fc1.weight");
        params.next().unwrap().tensor
    };
    let before = weight(&model);
    let a = var(&model, "model.layers.0.fc1.lora_A.default.weight");
    let b = var(&model, "model.layers.0.fc1.lora_B.default.weight");
    let delta = (b
        .as_detached_tensor()
        .matmul(&a.as_detached_tensor())
        .unwrap()
        * 2.0)
        .unwrap();
    let sum = (before.to_dtype(DType::F32).unwrap() + delta).unwrap();
    model.merge().unwrap();
    let expected = sum.to_dtype(DType::BF16).unwrap();
    assert_eq!(values(&weight(&model)).unwrap(), values(&expected).unwrap());
    model.unmerge().unwrap();
    assert_eq!(weight(&model).id(), before.id());
}

/// PEFT takes rsLoRA over and is then wrong by √r.
#[test]
fn a_combination_of_rslora_adapters_is_their_sum() {
    let base = linear(1, DType::F64);
    let config = LoraConfig::new(4).alpha(3.0).use_rslora(true);
    let mut model = base.to_lora(&config).unwrap();
    perturb(&model, 3);
    model.add_adapter("b", &config).unwrap();
    model.set_active(&["b"]).unwrap();
    perturb(&model, 5);
    for (new, combination) in [("cat", Combination::Cat), ("svd", Combination::Svd)] {
        let options = CombineOptions::default().svd_rank(6);
        let options = match combination {
            Combination::Svd => options,
            _ => CombineOptions::default(),
        };
        model
            .add_weighted_adapter(new, &[("default", 0.5), ("b", -1.0)], combination, &options)
            .unwrap();
        let delta = |name: &str| model.delta(model.adapters().get(name).unwrap()).unwrap();
        let expected = ((delta("default") * 0.5).unwrap() - delta("b")).unwrap();
        assert_close(new, &delta(new), &expected, 1e-9);
        assert_eq!(model.adapters().get(new).unwrap().scaling(), 1.0);
    }
}
