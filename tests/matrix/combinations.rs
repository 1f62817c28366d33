//! `fixtures/lifecycle/weighted.json`: adapters combined into one.

use super::api;
use super::cases::{folder, near, read_json, run, same};
use crate::peft::models::{Conv2dNet, EmbedNet, Mlp, Twin};
use crate::peft::support::{Result, Weights};
use lora::LoraModule;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Makes the new adapter and compares its updates with PEFT's.
fn check<T: Twin>(case: &Value, targets: &Value, tensors: &Weights) -> Result {
    let model_name = case["model"].as_str().unwrap();
    let of_model = tensors.under(&format!("{model_name}."));
    let base = T::new(&of_model.under("base."));
    let targets = targets[model_name].as_array().unwrap();
    let config = |rank, alpha, targets: &[Value]| {
        api::config(&json!({"r": rank, "lora_alpha": alpha, "target_modules": targets}))
    };
    let mut model = api::create(&base, "one", &config(3, 6, targets)?)?;
    api::add_adapter(&mut model, "two", &config(3, 2, targets)?)?;
    api::add_adapter(&mut model, "three", &config(2, 5, &targets[1..])?)?;
    for (name, value) in of_model.under("values.").0 {
        api::set(&mut model, &api::path(&name), &value)?;
    }

    let names = api::strings(&case["adapters"])?;
    let weights = case["weights"].as_array().unwrap().iter();
    let parts: Vec<(&str, f64)> = names
        .iter()
        .map(String::as_str)
        .zip(weights.filter_map(Value::as_f64))
        .collect();
    let combination = case["combination"].as_str().unwrap();
    api::combine(&mut model, "new", &parts, combination, &case["options"])?;
    let name = |name: &str| name.to_string();
    let expected: BTreeSet<_> = ["one", "two", "three", "new"].map(name).into();
    let adapters = api::adapter_names(&model)?.into_iter().collect();
    same("adapters", adapters, expected)?;
    same("active", api::active_adapters(&model)?, vec![name("one")])?;

    api::set_active(&mut model, &["new"])?;
    let ranks = case["ranks"].as_object().unwrap();
    let params = model.named_params();
    for (layer, rank) in ranks {
        let mut of_layer = params.iter().filter(|param| param.layer() == layer);
        let a = of_layer.find(|param| api::part(param) == Some(("new".into(), "A")));
        let a = a.ok_or_else(|| format!("`{layer}` has no new adapter"))?;
        let (ours, theirs) = (a.tensor.dim(0)?, rank.as_u64().unwrap() as usize);
        // PEFT counts the ranks of adapters that the layer has not, too, and fills up with zeros.
        if combination != "cat" || ours > theirs {
            same("rank", ours, theirs)?;
        }
    }
    let deltas = tensors.under(&format!("delta.{}.", case["case"].as_str().unwrap()));
    same(
        "layers",
        deltas.0.keys().collect::<Vec<_>>(),
        sorted(ranks.keys()),
    )?;
    let merged = model.to_base()?.to_frozen()?.named_params();
    for param in merged.iter().filter(|param| param.name() == "weight") {
        let before = of_model.get(&format!("base.{}", param.path));
        let delta = (param.tensor.detach() - &before)?;
        match deltas.0.get(param.layer()) {
            Some(expected) => near(param.layer(), &delta, expected, 1e-4)?,
            None => same(
                &param.path,
                delta.abs()?.sum_all()?.to_scalar::<f32>()?,
                0.0,
            )?,
        }
    }
    Ok(())
}

fn sorted<'a>(names: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    let names: BTreeSet<_> = names.collect();
    names.into_iter().collect()
}

/// Checks the cases of a combination.
#[track_caller]
fn combination(name: &str, count: usize) {
    let all = read_json(folder("lifecycle").join("weighted.json"));
    let tensors = Weights::read(folder("lifecycle").join("weighted.safetensors"));
    let cases = all["cases"].as_array().unwrap().iter();
    let cases = cases.filter(|case| case["combination"] == name);
    let cases = cases.map(|case| (case["case"].as_str().unwrap().to_string(), case));
    run(cases, count, |case| {
        let check = match case["model"].as_str().unwrap() {
            "mlp" => check::<Mlp>,
            "conv2d" => check::<Conv2dNet>,
            _ => check::<EmbedNet>,
        };
        check(case, &all["targets"], &tensors)
    });
}

macro_rules! combinations {
    ($($name:ident $count:literal)*) => {
        $(#[test]
        fn $name() {
            combination(stringify!($name), $count);
        })*

        #[test]
        fn every_combination_is_a_test() {
            let all = read_json(folder("lifecycle").join("weighted.json"));
            let cases = all["cases"].as_array().unwrap();
            assert_eq!(cases.len(), [$($count),*].iter().sum::<usize>());
        }
    };
}

combinations! {
    linear 9
    cat 12
    svd 21
    ties 5
    ties_svd 18
    magnitude_prune 12
    magnitude_prune_svd 5
    dare_linear 1
    dare_ties 1
    dare_linear_svd 1
    dare_ties_svd 1
}
