//! Adapters that PEFT made.

use crate::Report;
use crate::numbers::farthest;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use lora::{Lora, LoraModel, LoraModule, Names};
use std::collections::HashMap;
use std::path::Path;

/// The inputs and outputs of a fixture, by name.
pub type Data = HashMap<String, Tensor>;

/// How far outputs may be from PEFT's, relative to the largest.
const TOLERANCE: f64 = 1e-5;

/// A model and its inputs, for a fixture: a file of `../runs/peft`.
pub trait Peft {
    type Model: LoraModel;

    fn build(vb: VarBuilder<'_>, config: &str) -> Result<Self::Model>;

    /// The output of the base model.
    fn base(model: &mut Self::Model, data: &Data) -> Result<Tensor>;

    /// The output of the LoRA model: the same code.
    fn lora(model: &mut Lora<Self::Model>, data: &Data) -> Result<Tensor>;
}

/// Writes a body once for the base model and once for the LoRA model.
#[macro_export]
macro_rules! peft {
    (|$model:ident, $data:ident| $body:block) => {
        pub struct Run;

        impl $crate::Peft for Run {
            type Model = Model;

            fn build(vb: VarBuilder<'_>, config: &str) -> Result<Self::Model> {
                build(vb, config)
            }

            fn base($model: &mut Self::Model, $data: &Data) -> Result<Tensor> $body

            fn lora($model: &mut ::lora::Lora<Self::Model>, $data: &Data) -> Result<Tensor> $body
        }
    };
}

/// The base checkpoint and the adapter give PEFT's outputs, and the adapter is saved under PEFT's keys.
pub fn peft<P: Peft>(report: &mut Report, folder: &str) {
    report.stage("peft", || compare::<P>(Path::new(folder)));
}

fn compare<P: Peft>(folder: &Path) -> Result<()> {
    let load = |name: &str| {
        let file = folder.join(name);
        let tensors = candle_core::safetensors::load(&file, &Device::Cpu);
        tensors.with_context(|| format!("cannot read {}", file.display()))
    };
    let data = load("data.safetensors")?;
    let expected = |name: &str| {
        data.get(name)
            .with_context(|| format!("no output `{name}`"))
    };
    let config = std::fs::read_to_string(folder.join("config.json"))?;

    let names = Names::new();
    let vb = VarBuilder::from_tensors(load("model.safetensors")?, DType::F32, &Device::Cpu);
    let mut model = P::build(names.record(vb), &config)?;
    let output = P::base(&mut model, &data)?;
    close("the base model", &output, expected("base")?)?;
    let mut adapted = model.with_adapter(folder.join("adapter"))?;
    let output = P::lora(&mut adapted, &data)?;
    close("the adapted model", &output, expected("adapted")?)?;
    adapted.merge()?;
    let output = P::lora(&mut adapted, &data)?;
    close("the merged model", &output, expected("adapted")?)?;
    adapted.unmerge()?;

    let saved = tempfile::tempdir()?;
    adapted.save_adapter(saved.path())?;
    let file = saved.path().join("adapter_model.safetensors");
    let saved = candle_core::safetensors::load(file, &Device::Cpu)?;
    let theirs = load("adapter/adapter_model.safetensors")?;
    let beyond = |a: &Data, b: &Data| {
        let mut keys: Vec<_> = a
            .keys()
            .filter(|key| !b.contains_key(*key))
            .cloned()
            .collect();
        keys.sort();
        keys.join(", ")
    };
    let (more, missing) = (beyond(&saved, &theirs), beyond(&theirs, &saved));
    ensure!(
        more.is_empty() && missing.is_empty(),
        "saves keys that PEFT has not: {more}; and not: {missing}"
    );
    for (key, tensor) in &theirs {
        ensure!(
            farthest(&saved[key], tensor)? == 0.,
            "saves other values of {key}"
        );
    }
    Ok(())
}

fn close(what: &str, output: &Tensor, expected: &Tensor) -> Result<()> {
    let far = farthest(output, expected)?;
    ensure!(far <= TOLERANCE, "{what} differs from PEFT's by {far:.1e}");
    Ok(())
}
