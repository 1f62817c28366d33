//! Shows a base model data before its adapters are made, for initial values that need data.

use crate::adapter::Recorder;
use crate::adapter::{AdaptedMut, updates};
use crate::config::Kind;
use crate::init::Calibration;
use crate::traits::{each_layer, each_layer_mut, try_each_layer, try_each_layer_mut};
use crate::{
    Calibrated, DEFAULT_ADAPTER, Error, Init, Lora, LoraConfig, LoraModel, LoraModule, Result,
    manage,
};
use candle_core::{Tensor, Var};
use std::sync::{Arc, Mutex};

/// Runs the caller's batches through the base model until the data is used up or suffices.
pub(crate) fn calibrate<B: LoraModel>(
    base: &B,
    config: &LoraConfig,
    mut batch: impl FnMut(&Lora<B>) -> Result<Option<Tensor>>,
) -> Result<Calibrated> {
    let mut calibration = Calibration::new(config)?;
    // This conversion only finds the targets and their ranks: its adapters act on no batch.
    let plain = LoraConfig {
        init: Init::Default,
        use_dora: false,
        lora_bias: false,
        ..config.clone()
    };
    let mut model = base.to_lora(&plain)?;
    let mut problems = Vec::new();
    each_layer(&model, |path, layer| {
        let Some(adapted) = layer.adapted() else {
            return;
        };
        let Some(adapter) = adapted.adapters().get(DEFAULT_ADAPTER) else {
            return;
        };
        let settings = adapter.settings();
        let shape = updates::matrix(adapted)
            .and_then(|matrix| Ok(matrix.map(|m| m.dims2()).transpose()?));
        let added = match shape {
            Ok(Some(shape)) => calibration.add_layer(path, shape, settings.rank, settings.alpha),
            Ok(None) => Err(not_linear(path, layer.kind(), config.init)),
            Err(error) => Err(error),
        };
        if let Err(error) = added {
            problems.push(error.to_string());
        }
    });
    if !problems.is_empty() {
        return Err(Error::Config(problems));
    }
    // The data must pass through the base alone: the adapters' values are not those to come.
    manage::activate(&mut model, &[])?;
    let calibration = match config.init.needs_gradients() {
        true => by_gradients(&mut model, calibration, &mut batch)?,
        false => by_inputs(&mut model, calibration, &mut batch)?,
    };
    calibration.finish()
}

pub(crate) fn not_linear(path: &str, kind: Kind, init: Init) -> Error {
    Error::layer(
        path,
        format!("`{init}` starts linear layers, this is a {kind}: exclude it, or use another init"),
    )
}

/// The layers note their inputs while the caller's batches run.
fn by_inputs<M: LoraModule>(
    model: &mut M,
    calibration: Calibration,
    batch: &mut impl FnMut(&M) -> Result<Option<Tensor>>,
) -> Result<Calibration> {
    model.eval();
    // Shared by all recorders. A lock, as a model's layers may run on several threads.
    let calibration = Arc::new(Mutex::new(calibration));
    each_layer_mut(model, |path, layer| {
        if let Some(adapted) = layer.adapted_mut() {
            let adapters = adapted.adapters_mut();
            if adapters.get(DEFAULT_ADAPTER).is_some() {
                adapters.recorder = Some(Recorder::new(path, &calibration));
            }
        }
    });
    while batch(model)?.is_some() {
        let mut calibration = lock(&calibration);
        if !calibration.has_seen() {
            let problem = "a batch went by and no target was seen at work: run the model that is \
                           handed over";
            return Err(Error::Config(vec![problem.into()]));
        }
        if calibration.end_batch() {
            break;
        }
    }
    // A clone, as the recorders in the model still hold the shared value.
    let calibration = lock(&calibration).clone();
    Ok(calibration)
}

fn lock(calibration: &Mutex<Calibration>) -> std::sync::MutexGuard<'_, Calibration> {
    calibration
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The weights of targets become variables, so that each batch's loss has gradients for them. The
/// variables are copies: the base model's own weights stay as they are.
fn by_gradients<M: LoraModule>(
    model: &mut M,
    mut calibration: Calibration,
    batch: &mut impl FnMut(&M) -> Result<Option<Tensor>>,
) -> Result<Calibration> {
    try_each_layer_mut(model, |path, layer| {
        if let Some(adapted) = layer.adapted_mut()
            && adapted.adapters().get(DEFAULT_ADAPTER).is_some()
        {
            if adapted.adapters().blocks.is_some() {
                let problem = "is quantised, and `lora_ga` needs the gradient of the weight: take \
                               another initial value";
                return Err(Error::layer(path, problem));
            }
            let weight = adapted.weight_mut();
            *weight = Var::from_tensor(weight)?.into_inner();
        }
        Ok(())
    })?;
    while let Some(loss) = batch(model)? {
        let grads = loss.backward()?;
        try_each_layer(model, |path, layer| {
            let Some(adapted) = layer.adapted() else {
                return Ok(());
            };
            if adapted.adapters().get(DEFAULT_ADAPTER).is_none() {
                return Ok(());
            }
            let grad = grads.get(adapted.weight());
            let none = || Error::layer(path, "the loss has no gradient of its weight");
            let grad = adapted.form().to_matrix(grad.ok_or_else(none)?)?;
            calibration.observe_gradient(path, &grad)
        })?;
        if calibration.end_batch() {
            break;
        }
    }
    Ok(calibration)
}
