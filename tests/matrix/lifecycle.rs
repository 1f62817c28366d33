//! `fixtures/lifecycle`: what becomes of a model's adapters, operation by operation.

use super::api::{self, part};
use super::cases::{folder, input, near, read_json, run, same};
use crate::peft::models::{Conv2dNet, EmbedNet, Mlp, Twin};
use crate::peft::support::{Result, Weights};
use candle_core::Module;
use lora::{LoraModule, NamedParam};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// A model on the way through a scenario.
struct Run<T: Twin> {
    base: T,
    configs: Value,
    tensors: Weights,
    model: Option<T::Lora>,
    /// An adapter was swapped and none was activated since.
    swapped: bool,
}

impl<T: Twin> Run<T> {
    /// Does one operation; the model with whose output it ends.
    fn apply(&mut self, op: &Value) -> Result<T::Lora> {
        let (name, args) = op
            .as_array()
            .and_then(|op| op.split_first())
            .ok_or("no operation")?;
        let text = |index: usize| args[index].as_str().unwrap_or_default();
        let names = || -> Result<Vec<&str>> {
            let names = args[0].as_array().ok_or("a list of names")?.iter();
            Ok(names.filter_map(Value::as_str).collect())
        };
        if name == "create" {
            let config = api::config(&self.configs[text(0)])?;
            self.model = Some(api::create(&self.base, text(0), &config)?);
        }
        let model = self.model.as_mut().ok_or("no model yet")?;
        match name.as_str().unwrap_or_default() {
            "create" => {}
            "add" => api::add_adapter(model, text(0), &api::config(&self.configs[text(0)])?)?,
            "set" => {
                if model.is_merged() {
                    // PEFT takes the adapters out of the weights without a word.
                    let refused = api::set_active(model, &names()?);
                    let refused = refused.is_err_and(|error| error.to_string().contains("merged"));
                    same("refused while merged", refused, true)?;
                    model.unmerge()?;
                }
                api::set_active(model, &names()?)?;
                self.swapped = false;
            }
            "train" => api::set_trainable(model, text(0), args[1] == true)?,
            "delete" => {
                let active = api::active_adapters(model)?;
                api::delete(model, text(0))?;
                let left: Vec<_> = active.into_iter().filter(|name| name != text(0)).collect();
                same(
                    "active after deletion",
                    api::active_adapters(model)?,
                    left.clone(),
                )?;
                if left.is_empty() {
                    // PEFT chooses one that is left, the first by name.
                    let first = api::adapter_names(model)?.into_iter().min();
                    api::set_active(model, &[&first.ok_or("no adapter left")?])?;
                }
            }
            "merge" => api::merge(model, &names()?)?,
            "unmerge" => model.unmerge()?,
            "scale" => api::set_scale(model, text(0), args[1].as_f64().ok_or("a factor")?)?,
            "hot_swap" => {
                let before = training(model);
                api::hot_swap(model, text(0), &folder("lifecycle").join(text(1)))?;
                // PEFT freezes an adapter by the way where its rank becomes larger.
                same("training as before", training(model), before)?;
                self.swapped = true;
            }
            "disabled" => return api::disabled(model),
            "rows" => {
                model.eval();
                let rows = names()?.into_iter();
                let rows: Vec<_> = rows.map(|row| (row != "__base__").then_some(row)).collect();
                return api::for_rows(model, &rows);
            }
            other => return Err(format!("no operation `{other}`").into()),
        }
        Ok(model.clone())
    }

    /// Does one operation and compares the state with PEFT's.
    fn step(&mut self, number: usize, state: &Value) -> Result {
        let mut view = self.apply(&state["op"])?;
        let values = self.tensors.under(&format!("values.{number}."));
        if !values.0.is_empty() {
            let model = self.model.as_mut().ok_or("no model yet")?;
            for (name, value) in &values.0 {
                match name.split_once(".modules_to_save.") {
                    Some((module, rest)) => api::set_saved(model, module, rest, value)?,
                    None => api::set(model, &api::path(name), value)?,
                }
            }
            view = model.clone();
        }
        view.eval();
        let output = view.forward(&input(&self.tensors, "x"))?;
        near(
            "output",
            &output,
            &self.tensors.get(&format!("y.{number}")),
            1e-5,
        )?;

        let model = self.model.as_ref().ok_or("no model yet")?;
        let sorted = |names: Vec<String>| names.into_iter().collect::<BTreeSet<_>>();
        let adapters = sorted(api::adapter_names(model)?);
        same(
            "adapters",
            adapters,
            sorted(api::strings(&state["adapters"])?),
        )?;
        same(
            "active",
            api::active_adapters(model)?,
            api::strings(&state["active"])?,
        )?;
        let merged = state["merged"].as_array().ok_or("a list of names")?;
        same("is merged", model.is_merged(), !merged.is_empty())?;
        if self.swapped {
            return Ok(());
        }
        same("training", training(model), state["training"].clone())
    }
}

/// Whether each adapter is trained; "irregular" where its parameters differ.
fn training<M: LoraModule>(model: &M) -> Value {
    let mut training = Map::new();
    for param in model.named_params() {
        let Some((adapter, _)) = part(&param) else {
            continue;
        };
        let trained = json!(param.is_trainable());
        let known = training.entry(adapter).or_insert(trained.clone());
        if *known != trained {
            *known = json!("irregular");
        }
    }
    Value::Object(training)
}

fn check<T: Twin>(name: &str, spec: &Value, configs: &Value) -> Result {
    let tensors = Weights::read(folder("lifecycle").join(format!("{name}.safetensors")));
    let mut run = Run::<T> {
        base: T::new(&tensors.under("base.")),
        configs: configs.clone(),
        tensors,
        model: None,
        swapped: false,
    };
    for (number, state) in spec["states"].as_array().unwrap().iter().enumerate() {
        let step = run.step(number, state);
        step.map_err(|error| format!("{number}, after {}: {error}", state["op"]))?;
    }
    Ok(())
}

/// Goes through one scenario.
#[track_caller]
fn scenario(name: &str) {
    let all = read_json(folder("lifecycle").join("states.json"));
    let check = match all[name]["model"].as_str().unwrap() {
        "mlp" => check::<Mlp>,
        "conv2d" => check::<Conv2dNet>,
        "embedding" => check::<EmbedNet>,
        other => panic!("no twin of `{other}`"),
    };
    run([(name.to_string(), &all[name])], 1, |spec| {
        check(name, spec, &all["configs"])
    });
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            scenario(stringify!($name));
        })*

        #[test]
        fn every_scenario_is_a_test() {
            let all = read_json(folder("lifecycle").join("scenarios.json"));
            let names: Vec<_> = all.as_object().unwrap().keys().cloned().collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

scenarios! {
    several
    deletion
    disabling
    merging
    merging_convolutions
    activation_while_merged
    scaling
    saved_modules
    mixed_batch
    mixed_batch_convolutions
    mixed_batch_embedding
    mixed_batch_saved_modules
    hot_swap
}

/// PEFT's states with the models that are in them.
fn status_cases() -> Vec<(String, Value)> {
    let rows = read_json(folder("lifecycle").join("status.json"));
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| (row["ops"].to_string(), row.clone()))
        .collect()
}

/// Runs the operations of a row.
fn model_of(row: &Value) -> Result<<Mlp as lora::LoraModel>::Lora> {
    let states = read_json(folder("lifecycle").join("states.json"));
    let tensors = Weights::read(folder("lifecycle").join("several.safetensors"));
    let mut run = Run::<Mlp> {
        base: Mlp::new(&tensors.under("base.")),
        configs: states["configs"].clone(),
        tensors,
        model: None,
        swapped: false,
    };
    let mut last = None;
    for op in row["ops"].as_array().unwrap() {
        last = Some(run.apply(op)?);
    }
    Ok(last.ok_or("no operation")?)
}

/// The fields in which the model and PEFT are to agree. A view without active adapters is not the
/// model that PEFT changes, so only what defines it counts.
fn same_fields(row: &Value, ours: &Value, theirs: &Value, fields: &[&str]) -> Result {
    let ops = row["ops"].as_array().unwrap();
    let disabled = ops.last().is_some_and(|op| op[0] == "disabled");
    // PEFT calls a layer enabled, too, where none of the active adapters is.
    let names = |field: &str| api::strings(&theirs[field]).unwrap_or_default();
    let available = names("available_adapters");
    let acts = names("active_adapters")
        .iter()
        .any(|name| available.contains(name));
    for field in fields {
        if *field == "enabled" && !acts {
            continue;
        }
        if !disabled || ["name", "enabled", "available_adapters"].contains(field) {
            same(field, &ours[field], &theirs[field])?;
        }
    }
    Ok(())
}

#[test]
fn layer_status() {
    let fields = [
        "name",
        "module_type",
        "enabled",
        "active_adapters",
        "merged_adapters",
        "requires_grad",
        "available_adapters",
    ];
    run(status_cases(), 6, |row| {
        let ours = api::layer_status(&model_of(row)?)?;
        let (ours, theirs) = (ours.as_array().unwrap(), row["layers"].as_array().unwrap());
        same("number of layers", ours.len(), theirs.len())?;
        for (ours, theirs) in ours.iter().zip(theirs) {
            let mut theirs = theirs.clone();
            let name = theirs["name"]
                .as_str()
                .unwrap()
                .trim_start_matches("model.");
            theirs["name"] = json!(name);
            same_fields(row, ours, &theirs, &fields)?;
        }
        Ok(())
    });
}

#[test]
fn model_status() {
    let fields = [
        "trainable_params",
        "total_params",
        "num_adapter_layers",
        "enabled",
        "active_adapters",
        "merged_adapters",
        "requires_grad",
        "available_adapters",
    ];
    run(status_cases(), 6, |row| {
        let ours = api::model_status(&model_of(row)?)?;
        same_fields(row, &ours, &row["model"], &fields)
    });
}

#[test]
fn trained_parameters_are_those_of_the_active_adapters() {
    // The table of a fresh model, which needs no other adapter.
    let all = read_json(folder("lifecycle").join("states.json"));
    let tensors = Weights::read(folder("lifecycle").join("several.safetensors"));
    let config = api::config(&all["configs"]["default"]).unwrap();
    let model = api::create(&Mlp::new(&tensors.under("base.")), "default", &config).unwrap();
    assert_eq!(training(&model), all["several"]["states"][0]["training"]);
    let others = model.named_params().into_iter();
    let mut others = others.filter(|param| part(param).is_none());
    assert!(!others.any(|param: NamedParam| param.is_trainable()));
}
