//! The stages of a run.

use crate::numbers::{difference, largest, value};
use crate::random::{Asked, part};
use crate::{Report, Run, paths};
use anyhow::{Result, bail, ensure};
use candle_core::{TensorId, Var};
use lora::{Lora, LoraConfig, LoraModel, LoraModule, NamedParam, Names};
use std::collections::BTreeMap;

/// How far merged and unmerged models may be apart.
const TOLERANCE: f64 = 1e-4;

/// A model, and its loss.
struct Base<R: Run> {
    model: R::Model,
    loss: f64,
    names: Names,
    asked: BTreeMap<String, TensorId>,
}

/// A LoRA model with random adapters, and its loss.
struct Adapted<R: Run> {
    model: Lora<R::Model>,
    loss: f64,
}

/// Runs a model through all stages.
pub fn check<R: Run>(report: &mut Report) {
    let Some(base) = report.stage("base", base::<R>) else {
        return;
    };
    report.stage("paths", || {
        let params = base.model.to_frozen()?.named_params();
        paths::compare(&params, &base.asked)
    });
    report.stage("layers", || {
        paths::adapted(&base.model.to_frozen()?, &base.asked)
    });
    let Some(mut adapted) = report.stage("adapted", || adapted(&base)) else {
        return;
    };
    drop(base.names);
    report.stage("reached", || reached(&mut adapted));
    report.stage("gradients", || {
        let loss = |model: &Lora<R::Model>| R::lora(&mut model.clone()).map_err(into_lora);
        Ok(adapted.model.check_gradients(loss)?)
    });
    report.stage("merged", || merged(&mut adapted));
    report.stage("back", || {
        let loss = value(&R::base(&mut adapted.model.to_base()?)?)?;
        same("the base model with merged weights", loss, adapted.loss)
    });
}

fn base<R: Run>() -> Result<Base<R>> {
    let (names, asked) = (Names::new(), Asked::default());
    let mut model = R::build(asked.builder())?;
    let loss = value(&R::base(&mut model)?)?;
    let again = value(&R::base(&mut model)?)?;
    ensure!(
        loss == again,
        "the loss is {loss} at first and {again} then"
    );
    // A fresh model, without anything in its caches.
    let model = R::build(names.record(asked.builder()))?;
    let asked = asked.names();
    Ok(Base {
        model,
        loss,
        names,
        asked,
    })
}

fn adapted<R: Run>(base: &Base<R>) -> Result<Adapted<R>> {
    let mut config = LoraConfig::new(2);
    if !R::UNREACHED.is_empty() {
        config = config.exclude_modules(pattern(R::UNREACHED).as_str());
    }
    let mut model = base.model.to_lora(&config)?;
    let fresh = value(&R::lora(&mut model)?)?;
    // The functions of lora's own do not round as candle's do.
    same("a fresh adapter", fresh, base.loss)?;
    for param in trainable(&model) {
        let tensor = part(&param.path, param.tensor.shape())?;
        Var::from_tensor(&param.tensor)?.set(&tensor)?;
    }
    let loss = value(&R::lora(&mut model)?)?;
    ensure!(
        difference(loss, base.loss) > 1e-6,
        "the adapter changes nothing"
    );
    Ok(Adapted { model, loss })
}

/// A regular expression for patterns with stars.
fn pattern(patterns: &[&str]) -> String {
    let expression = |pattern: &&str| pattern.replace('.', r"\.").replace('*', ".*");
    let all: Vec<_> = patterns.iter().map(expression).collect();
    format!("(?:{})", all.join("|"))
}

fn trainable<M: LoraModule>(model: &M) -> impl Iterator<Item = NamedParam> {
    let params = model.named_params().into_iter();
    params.filter(NamedParam::is_trainable)
}

/// Each adapter gets a gradient, which is not zero.
fn reached<R: Run>(adapted: &mut Adapted<R>) -> Result<()> {
    let loss = R::lora(&mut adapted.model)?;
    let grads = adapted.model.backward(&loss)?;
    let mut slopes = Vec::new();
    for param in trainable(&adapted.model) {
        if let Some(grad) = grads.get(&param.tensor) {
            slopes.push((param.path, largest(grad)?));
        }
    }
    let steepest = slopes.iter().map(|(_, slope)| *slope).fold(0., f64::max);
    // What rounding leaves of a slope of zero is no slope.
    let flat = slopes.iter().filter(|(_, slope)| *slope <= 1e-7 * steepest);
    let flat: Vec<_> = flat.map(|(path, _)| path.as_str()).collect();
    ensure!(
        flat.is_empty(),
        "{} of {} gradients are zero: {}",
        flat.len(),
        slopes.len(),
        flat.join(", ")
    );
    Ok(())
}

/// The adapter in the weights gives what it gives beside the weights.
fn merged<R: Run>(adapted: &mut Adapted<R>) -> Result<()> {
    let mut model = adapted.model.clone();
    model.merge()?;
    same("merged", value(&R::lora(&mut model)?)?, adapted.loss)?;
    model.unmerge()?;
    same("unmerged", value(&R::lora(&mut model)?)?, adapted.loss)
}

fn same(what: &str, loss: f64, expected: f64) -> Result<()> {
    match difference(loss, expected) <= TOLERANCE {
        true => Ok(()),
        false => bail!("{what} gives {loss} in place of {expected}"),
    }
}

pub fn into_lora(error: anyhow::Error) -> lora::Error {
    lora::Error::Candle(candle_core::Error::msg(format!("{error:#}")))
}
