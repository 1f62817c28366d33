//! `fixtures/curves`: three steps of training, with PEFT's losses and where they lead.

use super::api::{self, part};
use super::cases::{folder, input, near, read_json, run, same};
use super::twins::TiedBase;
use crate::peft::models::{Conv1dNet, Conv2dNet, EmbedNet, Mlp, Stack, Twin};
use crate::peft::support::{Result, Weights};
use candle_core::{DType, Module, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use lora::{LoraModule, NamedParam};
use serde_json::Value;
use std::collections::BTreeSet;

/// The optimisers of a case: one, or LoRA+'s two.
fn optimizers<M: LoraModule>(model: &M, spec: &Value) -> Result<Vec<AdamW>> {
    let params = ParamsAdamW {
        lr: 0.01,
        weight_decay: 0.01,
        ..Default::default()
    };
    let Some(ratio) = spec.get("loraplus_ratio") else {
        return Ok(vec![AdamW::new(model.trainable_vars(), params)?]);
    };
    let lr = params.lr * ratio.as_f64().ok_or("a ratio is a number")?;
    let is_a = |param: &NamedParam| part(param).is_some_and(|(_, part)| part == "A");
    let trained = model.named_params().into_iter();
    let trained = trained.filter(NamedParam::is_trainable);
    let (a, others): (Vec<_>, Vec<_>) = trained.partition(is_a);
    let vars = |params: Vec<NamedParam>| {
        let vars = params.iter().map(|param| Var::from_tensor(&param.tensor));
        vars.collect::<candle_core::Result<Vec<_>>>()
    };
    // Biases are not decayed.
    let (biases, matrices): (Vec<_>, Vec<_>) = others
        .into_iter()
        .partition(|param| param.path.contains("bias"));
    let fast = ParamsAdamW {
        lr,
        ..params.clone()
    };
    let free = ParamsAdamW {
        weight_decay: 0.0,
        ..fast.clone()
    };
    Ok(vec![
        AdamW::new(vars(a)?, params)?,
        AdamW::new(vars(matrices)?, fast)?,
        AdamW::new(vars(biases)?, free)?,
    ])
}

/// Trains as PEFT did.
fn check<T: Twin>(name: &str, spec: &Value) -> Result {
    let tensors = Weights::read(folder("curves").join(format!("{name}.safetensors")));
    let half = spec.get("dtype").is_some();
    let tolerance = if half { 2e-2 } else { 1e-4 };
    let base = T::new(&tensors.under("base."));
    let adapters: Vec<_> = spec["adapters"].as_object().unwrap().iter().collect();
    let mut model = api::create(&base, adapters[0].0, &api::config(adapters[0].1)?)?;
    for (name, config) in &adapters[1..] {
        api::add_adapter(&mut model, name, &api::config(config)?)?;
    }
    if adapters.len() > 1 {
        let names: Vec<&str> = adapters.iter().map(|(name, _)| name.as_str()).collect();
        api::set_active(&mut model, &names)?;
        for name in names {
            api::set_trainable(&mut model, name, true)?;
        }
    }

    let start = tensors.under("start.");
    let trained = model.named_params().into_iter();
    let trained = trained.filter(NamedParam::is_trainable);
    let trained: BTreeSet<String> = trained.map(|param| param.path).collect();
    let expected: BTreeSet<_> = start.0.keys().map(|name| api::path(name)).collect();
    same("trained", trained, expected)?;
    for (name, value) in &start.0 {
        api::set(&mut model, &api::path(name), value)?;
    }

    let mut optimizers = optimizers(&model, spec)?;
    let losses: Vec<f32> = tensors.get("losses").to_vec1()?;
    model.train();
    for (step, expected) in losses.iter().enumerate() {
        // The last loss is that of the last batch after its step.
        let batch = step.min(2);
        let output = model.forward(&input(&tensors, &format!("x.{batch}")))?;
        let target = tensors.get(&format!("target.{batch}"));
        let loss = (output.to_dtype(DType::F32)? - target)?.sqr()?.mean_all()?;
        near(
            &format!("loss {step}"),
            &loss,
            &Tensor::new(*expected, loss.device())?,
            tolerance,
        )?;
        if step < 3 {
            let grads = model.backward(&loss)?;
            for optimizer in &mut optimizers {
                optimizer.step(&grads)?;
            }
        }
    }

    // The signs of singular vectors are free: those of a frozen B decide about A's.
    let free_signs = tensors.0.keys().any(|name| name.starts_with("frozen."));
    for (name, expected) in tensors.under("final.").0 {
        let path = api::path(&name);
        let mut params = model.named_params().into_iter();
        let param = params.find(|param| param.path == path).unwrap();
        let (mut actual, mut expected) = (param.tensor.detach(), expected);
        if free_signs {
            (actual, expected) = (actual.abs()?, expected.abs()?);
        }
        let actual = actual.reshape(expected.shape())?;
        near(
            &format!("final {name}"),
            &actual,
            &expected,
            10.0 * tolerance,
        )?;
    }
    Ok(())
}

/// Runs one case.
#[track_caller]
fn curve(name: &str) {
    let cases = read_json(folder("curves").join("cases.json"));
    let spec = &cases[name];
    let check = match spec["model"].as_str().unwrap() {
        "mlp" => check::<Mlp>,
        "stack" => check::<Stack>,
        "conv1d" => check::<Conv1dNet>,
        "conv2d" | "conv2d_grouped" => check::<Conv2dNet>,
        "embedding" => check::<EmbedNet>,
        "tied" => check::<TiedBase>,
        other => panic!("no twin of `{other}`"),
    };
    run([(name.to_string(), spec)], 1, |spec| check(name, spec));
}

macro_rules! curves {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            curve(stringify!($name));
        })*

        #[test]
        fn every_curve_is_a_test() {
            let cases = read_json(folder("curves").join("cases.json"));
            let names: Vec<_> = cases.as_object().unwrap().keys().cloned().collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

curves! {
    mlp
    mlp_rslora
    mlp_patterns
    mlp_head
    mlp_bias_all
    mlp_bias_lora_only
    mlp_bf16
    mlp_loraplus
    mlp_residual_given
    mlp_pissa
    mlp_olora
    mlp_mica
    mlp_dora
    mlp_dora_loraplus
    mlp_lora_bias
    mlp_two
    stack
    stack_dora_rslora
    stack_layers
    conv1d
    conv2d
    conv2d_dora
    conv2d_grouped
    embedding
    embedding_tokens
    tied
    tied_dora
}
