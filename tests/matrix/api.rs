//! The methods of the library that the harness calls, in one place.

use crate::peft::support::{Error, Result};
use candle_core::{Shape, Tensor, Var};
use indexmap::IndexMap;
use lora::peft::{SaveOptions, TaskType, WEIGHTS_FILE};
use lora::{
    Combination, CombineOptions, DEFAULT_ADAPTER, Init, LoraConfig, LoraModel, LoraModule,
    MajoritySign, NamedParam, Role, State, Targets, TrainBias,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The LoRA model with one adapter of this name.
pub fn create<M: LoraModel>(base: &M, name: &str, config: &LoraConfig) -> Result<M::Lora> {
    let mut model = base.to_lora(config)?;
    if name != DEFAULT_ADAPTER {
        rename(&mut model, DEFAULT_ADAPTER, name)?;
    }
    Ok(model)
}

fn rename<M: LoraModule>(model: &mut M, from: &str, to: &str) -> Result {
    Ok(model.rename_adapter(from, to)?)
}

/// Adds an adapter, which is not active.
pub fn add_adapter<M: LoraModule>(model: &mut M, name: &str, config: &LoraConfig) -> Result {
    Ok(model.add_adapter(name, config)?)
}

/// Makes these adapters the active ones, in this order.
pub fn set_active<M: LoraModule>(model: &mut M, names: &[&str]) -> Result {
    Ok(model.set_active(names)?)
}

/// Switches the training of an adapter on or off.
pub fn set_trainable<M: LoraModule>(model: &mut M, name: &str, on: bool) -> Result {
    Ok(model.set_adapter_trainable(name, on)?)
}

/// Multiplies an adapter's scaling as configured.
pub fn set_scale<M: LoraModule>(model: &mut M, name: &str, factor: f64) -> Result {
    Ok(model.set_scale(name, factor)?)
}

/// Removes an adapter.
pub fn delete<M: LoraModule>(model: &mut M, name: &str) -> Result {
    Ok(model.delete_adapter(name)?)
}

/// The model with no adapter active.
pub fn disabled<M: LoraModule>(model: &M) -> Result<M> {
    Ok(model.disabled()?)
}

/// Merges these adapters.
pub fn merge<M: LoraModule>(model: &mut M, names: &[&str]) -> Result {
    Ok(model.merge_adapters(names)?)
}

/// The model for a batch whose rows have these adapters, `None` for the base model.
pub fn for_rows<M: LoraModule>(model: &M, rows: &[Option<&str>]) -> Result<M> {
    Ok(model.for_rows(rows)?)
}

/// Puts the values of a directory into an adapter, in place.
pub fn hot_swap<M: LoraModule>(model: &mut M, name: &str, dir: &Path) -> Result {
    Ok(model.hot_swap(name, dir)?)
}

/// The names of all adapters.
pub fn adapter_names<M: LoraModule>(model: &M) -> Result<Vec<String>> {
    Ok(model.adapter_names())
}

/// The names of the active adapters, in order.
pub fn active_adapters<M: LoraModule>(model: &M) -> Result<Vec<String>> {
    Ok(model.active_adapters())
}

/// Makes a new adapter of others by the rule that PEFT calls `combination`. The options are PEFT's
/// keyword arguments: svd_rank, density, majority_sign_method ("total" unless given).
pub fn combine<M: LoraModule>(
    model: &mut M,
    new: &str,
    adapters: &[(&str, f64)],
    combination: &str,
    options: &Value,
) -> Result {
    let combination = match combination {
        "linear" => Combination::Linear,
        "cat" => Combination::Cat,
        "svd" => Combination::Svd,
        "ties" => Combination::Ties,
        "ties_svd" => Combination::TiesSvd,
        "dare_linear" => Combination::DareLinear,
        "dare_linear_svd" => Combination::DareLinearSvd,
        "dare_ties" => Combination::DareTies,
        "dare_ties_svd" => Combination::DareTiesSvd,
        "magnitude_prune" => Combination::MagnitudePrune,
        "magnitude_prune_svd" => Combination::MagnitudePruneSvd,
        other => return Err(format!("`{other}`: no such combination").into()),
    };
    let mut ours = CombineOptions::default();
    for (key, value) in options.as_object().ok_or("options are an object")? {
        match key.as_str() {
            "svd_rank" => ours.svd_rank = value.as_u64().map(|rank| rank as usize),
            "density" => ours.density = value.as_f64(),
            "majority_sign_method" if value == "frequency" => {
                ours.majority_sign = MajoritySign::Frequency;
            }
            _ => return Err(format!("`{key}` is {value}: no such option").into()),
        }
    }
    Ok(model.add_weighted_adapter(new, adapters, combination, &ours)?)
}

/// The status of each layer, as JSON with the fields of PEFT's `TunerLayerStatus`; the name without
/// PEFT's `model.`.
pub fn layer_status<M: LoraModule>(model: &M) -> Result<Value> {
    let layers = model.layer_status().into_iter();
    let layers = layers.map(|layer| {
        json!({
            "name": layer.name,
            "module_type": format!("lora.{}", layer.kind),
            "enabled": layer.enabled,
            "active_adapters": layer.active_adapters,
            "merged_adapters": layer.merged_adapters,
            "requires_grad": flags(&layer.requires_grad),
            "available_adapters": layer.available_adapters,
        })
    });
    Ok(layers.collect())
}

fn flags(flags: &IndexMap<String, State<bool>>) -> Value {
    flags
        .iter()
        .map(|(name, flag)| (name.clone(), state(flag)))
        .collect()
}

fn state<T: serde::Serialize + PartialEq>(state: &State<T>) -> Value {
    state
        .uniform()
        .map_or(json!("irregular"), |value| json!(value))
}

/// The status of the model, as JSON with the fields of PEFT's `TunerModelStatus`.
pub fn model_status<M: LoraModule>(model: &M) -> Result<Value> {
    let status = model.model_status();
    Ok(json!({
        "trainable_params": status.trainable_params,
        "total_params": status.total_params,
        "num_adapter_layers": status.num_adapter_layers,
        "enabled": state(&status.enabled),
        "active_adapters": state(&status.active_adapters),
        "merged_adapters": state(&status.merged_adapters),
        "requires_grad": flags(&status.requires_grad),
        "available_adapters": status.available_adapters,
    }))
}

/// Loads a directory as one more adapter, which is not active.
pub fn load_as<M: LoraModule>(model: &mut M, name: &str, dir: &Path) -> Result {
    Ok(model.load_adapter_as(name, dir)?)
}

/// Saves every adapter of the model, in the directory or, those of other names, below it.
pub fn save_all<M: LoraModule>(model: &M, dir: &Path) -> Result {
    let options = SaveOptions::new().task_type(TaskType::FeatureExtraction);
    Ok(model.save_adapter_with(dir, &options)?)
}

/// The path in the walk of what the fixtures call `name`: the names of PEFT's parameters, without
/// `base_layer`.
pub fn path(name: &str) -> String {
    name.into()
}

/// The parameter that an adapter's tensor is: its adapter and A, B, m (magnitude) or b (bias of B).
pub fn part(param: &NamedParam) -> Option<(String, &'static str)> {
    let Role::Adapter(_) = param.role else {
        return None;
    };
    let mut words = param.name().split('.');
    let (matrix, adapter, last) = (words.next()?, words.next()?, words.next());
    let part = match (matrix, last) {
        ("lora_A", Some("weight")) | ("lora_embedding_A", None) => "A",
        ("lora_B", Some("weight")) | ("lora_embedding_B", None) => "B",
        ("lora_B", Some("bias")) => "b",
        ("lora_magnitude_vector", None | Some("weight")) => "m",
        _ => return None,
    };
    Some((adapter.into(), part))
}

/// Gives a parameter a value. Its adapter is switched to training if it is not.
pub fn set<M: LoraModule>(model: &mut M, path: &str, value: &Tensor) -> Result {
    let find = |model: &M| -> Result<NamedParam> {
        let mut params = model.named_params().into_iter();
        let param = params.find(|param| param.path == path);
        param.ok_or_else(|| format!("the model has no parameter `{path}`").into())
    };
    let param = find(model)?;
    if !param.is_trainable() {
        let (adapter, _) = part(&param).ok_or_else(|| format!("`{path}` is frozen"))?;
        set_trainable(model, &adapter, true)?;
        set(model, path, value)?;
        return set_trainable(model, &adapter, false);
    }
    let value = value.to_dtype(param.tensor.dtype())?;
    if value.elem_count() != param.tensor.elem_count() {
        return Err(mismatch(path, param.tensor.shape(), value.shape()));
    }
    let value = value.reshape(param.tensor.shape())?;
    Ok(Var::from_tensor(&param.tensor)?.set(&value)?)
}

/// Gives a parameter of a module that an adapter trains in full a value: `rest` is the adapter's
/// name, a dot and the parameter's. The copy is in the model while its adapter is active.
pub fn set_saved<M: LoraModule>(model: &mut M, module: &str, rest: &str, value: &Tensor) -> Result {
    let (adapter, name) = rest.split_once('.').ok_or("no adapter")?;
    let active = model.active_adapters();
    let others = active != [adapter];
    if others {
        set_active(model, &[adapter])?;
    }
    set(model, &format!("{module}.{name}"), value)?;
    if others {
        let active: Vec<&str> = active.iter().map(String::as_str).collect();
        set_active(model, &active)?;
    }
    Ok(())
}

pub fn mismatch(what: &str, ours: &Shape, theirs: &Shape) -> Error {
    format!("{what}: shape {ours:?} here, {theirs:?} in PEFT").into()
}

/// The keys that an adapter's saved file has, with the shapes, for each adapter of the model.
pub fn saved<M: LoraModule>(model: &M) -> Result<BTreeMap<String, BTreeMap<String, Vec<usize>>>> {
    let dir = tempfile::tempdir()?;
    save_all(model, dir.path())?;
    let files = adapter_files(dir.path())?.into_iter();
    files.map(|(name, file)| Ok((name, keys(&file)?))).collect()
}

/// The weight files of a directory by adapter.
pub fn adapter_files(dir: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let file = |dir: &Path| dir.join(WEIGHTS_FILE);
    if file(dir).exists() {
        files.insert(DEFAULT_ADAPTER.into(), file(dir));
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let name = entry.file_name().to_string_lossy().into_owned();
            files.insert(name, file(&entry.path()));
        }
    }
    Ok(files)
}

fn keys(file: &Path) -> Result<BTreeMap<String, Vec<usize>>> {
    let bytes = std::fs::read(file)?;
    let file = safetensors::SafeTensors::deserialize(&bytes)?;
    let tensors = file.tensors().into_iter();
    Ok(tensors
        .map(|(key, tensor)| (key, tensor.shape().to_vec()))
        .collect())
}

/// The settings that PEFT's keyword arguments mean.
pub fn config(arguments: &Value) -> Result<LoraConfig> {
    let mut config = LoraConfig::new(8).seed(0);
    let arguments = arguments
        .as_object()
        .ok_or("a configuration is an object")?;
    for (key, value) in arguments {
        let wrong = || format!("`{key}` is {value}");
        let number = || value.as_f64().ok_or_else(wrong);
        let size = |value: &Value| value.as_u64().map(|v| v as usize).ok_or_else(wrong);
        let flag = || value.as_bool().ok_or_else(wrong);
        match key.as_str() {
            "r" => config.rank = size(value)?,
            "lora_alpha" => config.alpha = number()?,
            "lora_dropout" => config.dropout = number()?,
            "use_rslora" => config.use_rslora = flag()?,
            "use_dora" => config.use_dora = flag()?,
            "lora_bias" => config.lora_bias = flag()?,
            "ensure_weight_tying" => config.ensure_weight_tying = flag()?,
            "bias" => {
                config.train_bias = match value.as_str() {
                    Some("none") => TrainBias::None,
                    Some("all") => TrainBias::All,
                    Some("lora_only") => TrainBias::LoraOnly,
                    _ => return Err(wrong().into()),
                }
            }
            "init_lora_weights" => {
                config.init = match value {
                    Value::Bool(true) => Init::Default,
                    Value::Bool(false) => Init::Random,
                    name => serde_json::from_value(name.clone())?,
                }
            }
            "target_modules" => config.target_modules = Some(targets(value)?),
            "exclude_modules" => config.exclude_modules = Some(targets(value)?),
            "modules_to_save" => config.modules_to_save = strings(value)?,
            "target_parameters" => config.target_parameters = strings(value)?,
            "layers_pattern" => config.layers_pattern = strings(value)?,
            "layers_to_transform" => {
                let numbers = value.as_array().ok_or_else(wrong)?.iter();
                config.layers_to_transform = numbers.map(size).collect::<Result<_, _>>()?;
            }
            "rank_pattern" => config.rank_pattern = map(value, |v| Ok(size(v)?))?,
            "alpha_pattern" => {
                config.alpha_pattern = map(value, |v| Ok(v.as_f64().ok_or_else(wrong)?))?;
            }
            "trainable_token_indices" => {
                config.trainable_token_indices = map(value, |v| {
                    let rows = v.as_array().ok_or_else(wrong)?.iter();
                    let rows = rows.map(|row| Ok(size(row)? as u32));
                    rows.collect()
                })?;
            }
            _ => return Err(format!("`{key}`: no such setting").into()),
        }
    }
    Ok(config)
}

fn map<T>(value: &Value, read: impl Fn(&Value) -> Result<T>) -> Result<IndexMap<String, T>> {
    let entries = value.as_object().ok_or("patterns are an object")?.iter();
    entries.map(|(k, v)| Ok((k.clone(), read(v)?))).collect()
}

pub fn strings(value: &Value) -> Result<Vec<String>> {
    let strings = value.as_array().ok_or("names are an array")?.iter();
    let strings = strings.map(|v| Ok(v.as_str().ok_or("a name is a string")?.into()));
    strings.collect()
}

fn targets(value: &Value) -> Result<Targets> {
    Ok(match value.as_str() {
        Some(regex) => Targets::Regex(regex.into()),
        None => Targets::Names(strings(value)?),
    })
}
