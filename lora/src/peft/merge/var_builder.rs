//! A `VarBuilder` whose tensors are merged when they are asked for.

use super::MergeOptions;
use super::plan::Plan;
use crate::file::Checkpoint;
use crate::peft::AdapterDir;
use crate::{Error, Result, gguf};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use indexmap::IndexMap;
use serde_json::Value;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The weights of a checkpoint with an adapter of PEFT's merged into them, for any model that loads
/// from a [`VarBuilder`]. Each tensor is read and merged when the model asks for it.
///
/// `base` is one file or several, each as in [`merge_checkpoint`](super::merge_checkpoint). Tensors
/// are computed in f32 and then cast to `dtype`.
///
/// A change to a tensor that the model never asks for has no effect. Once the model is loaded, the
/// [`MergeCheck`] tells whether the model asked for every tensor that the adapter changes.
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use std::collections::HashMap;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (base, adapter) = (dir.path().join("model.safetensors"), dir.path().join("adapter"));
/// # std::fs::create_dir(&adapter)?;
/// # std::fs::write(adapter.join("adapter_config.json"),
/// #     r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["fc"]}"#)?;
/// # let ones = |shape: (usize, usize)| Tensor::ones(shape, DType::F32, &Device::Cpu);
/// # candle_core::safetensors::save(&HashMap::from([("fc.weight", ones((2, 3))?)]), &base)?;
/// # candle_core::safetensors::save(&HashMap::from([
/// #     ("base_model.model.fc.lora_A.weight", ones((1, 3))?),
/// #     ("base_model.model.fc.lora_B.weight", ones((2, 1))?),
/// # ]), adapter.join("adapter_model.safetensors"))?;
/// use lora::peft::merged_var_builder;
///
/// let (vb, check) = merged_var_builder(&[base], adapter, DType::F32, &Device::Cpu)?;
/// let model = candle_nn::linear_no_bias(3, 2, vb.pp("fc"))?; // or any model
/// check.finish()?; // nothing of the adapter was left out
/// assert_eq!(model.weight().to_vec2::<f32>()?, [[3.0; 3]; 2]); // 1 + 2/1 · 1·1
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Those of [`merge_checkpoint`](super::merge_checkpoint). A merged value that is not finite is an
/// error when the model asks for its tensor.
pub fn merged_var_builder<P: AsRef<Path>>(
    base: &[P],
    adapter: impl Into<AdapterDir>,
    dtype: DType,
    device: &Device,
) -> Result<(VarBuilder<'static>, MergeCheck)> {
    merged_var_builder_with(base, adapter, dtype, device, &MergeOptions::new())
}

/// As [`merged_var_builder`], with options.
///
/// # Errors
/// Those of [`merged_var_builder`].
pub fn merged_var_builder_with<P: AsRef<Path>>(
    base: &[P],
    adapter: impl Into<AdapterDir>,
    dtype: DType,
    device: &Device,
    options: &MergeOptions,
) -> Result<(VarBuilder<'static>, MergeCheck)> {
    let paths: Vec<PathBuf> = base.iter().map(|path| path.as_ref().into()).collect();
    let base = match &paths[..] {
        [one] => gguf::open(one)?,
        _ => Checkpoint::open_all(&paths)?,
    };
    let adapter = adapter.into();
    let plan = Plan::new(base, &adapter, options)?;
    // A head that is the embedding's weight is not asked for by every model.
    let all = plan.changed().filter(|name| !plan.is_shared(name));
    let check = MergeCheck {
        adapter: adapter.path().into(),
        all: all.map(String::from).collect(),
        settings: plan.settings.clone(),
        asked: Arc::default(),
    };
    let merged = MergedBackend {
        plan,
        asked: check.asked.clone(),
    };
    let builder = VarBuilder::from_backend(Box::new(merged), dtype, device.clone());
    Ok((builder, check))
}

/// Tells which of the tensors that an adapter changes a model asked for.
#[derive(Clone, Debug)]
#[must_use = "call finish() after loading: a change that no model asked for is left out in silence"]
pub struct MergeCheck {
    adapter: PathBuf,
    all: Vec<String>,
    settings: IndexMap<String, Value>,
    asked: Arc<Mutex<HashSet<String>>>,
}

impl MergeCheck {
    /// Names of the tensors that the adapter changes and that no model has asked for so far.
    pub fn unused(&self) -> Vec<String> {
        // A thread that panicked leaves whole names: a poisoned lock is no harm.
        let asked = self
            .asked
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let unused = self.all.iter().filter(|name| !asked.contains(*name));
        unused.cloned().collect()
    }

    /// Entries of the model's `config.json` that are true of the merged weights and not of the base,
    /// as in [`MergeReport::settings`](super::MergeReport::settings): the model must be made with
    /// these.
    pub fn settings(&self) -> &IndexMap<String, Value> {
        &self.settings
    }

    /// Checks that the model asked for every tensor that the adapter changes.
    ///
    /// # Errors
    /// Lists the tensors that it did not ask for. The adapter is then for another model, or the
    /// model has other names.
    pub fn finish(&self) -> Result<()> {
        let unused = self.unused();
        if unused.is_empty() {
            return Ok(());
        }
        let problem = |name| format!("changes `{name}`, which the model did not load");
        Err(Error::File {
            path: self.adapter.clone(),
            problems: unused.into_iter().map(problem).collect(),
        })
    }
}

struct MergedBackend {
    plan: Plan,
    asked: Arc<Mutex<HashSet<String>>>,
}

impl SimpleBackend for MergedBackend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if *tensor.shape() != shape {
            let error = candle_core::Error::UnexpectedShape {
                msg: format!("shape mismatch for {name}"),
                expected: shape,
                got: tensor.shape().clone(),
            };
            return Err(error.bt());
        }
        Ok(tensor)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        if !self.contains_tensor(name) {
            let path = name.to_string();
            return Err(candle_core::Error::CannotFindTensor { path }.bt());
        }
        let tensor = self.plan.apply(name)?;
        let mut asked = self
            .asked
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        asked.insert(name.into());
        drop(asked);
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.plan.base.contains(name) || self.plan.changes.contains_key(name)
    }
}
