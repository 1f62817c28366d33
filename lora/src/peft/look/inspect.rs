//! [`inspect`]: what a file holds.

use super::report::{CheckpointReport, DtypeShare, Inspection};
use super::{ModelFile, adapter};
use crate::error::shorten;
use crate::peft::import::find;
use crate::{Error, Result};
use indexmap::IndexMap;
use std::path::Path;

/// How closely to look.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InspectOptions {
    /// Whether to read values, for norms and to find what is suspicious in them. Without, only headers
    /// are read.
    pub values: bool,
}

impl Default for InspectOptions {
    fn default() -> Self {
        Self { values: true }
    }
}

impl InspectOptions {
    /// With values.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`values`](Self::values).
    pub fn values(mut self, read: bool) -> Self {
        self.values = read;
        self
    }
}

/// What an adapter or a checkpoint holds, without the model's code: settings, layers, sizes, the norm
/// and the effective rank of each update, and what is suspicious.
///
/// An adapter may be a directory or a file of PEFT, mlx-lm, diffusers, kohya or llama.cpp. A
/// checkpoint may be a safetensors file, an index or a directory with either, or a GGUF file. Memory
/// holds one tensor at a time. No update is formed: its singular values are those of a small matrix
/// between the QR decompositions of B and Aᵀ.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::Linear;
/// use lora::peft::{Inspection, inspect};
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// #[derive(Clone, Debug, LoraModel)]
/// struct Net { fc: Linear }
///
/// let fc = Linear::new(Tensor::randn(0f32, 1., (4, 3), &Device::Cpu)?, None);
/// let dir = tempfile::tempdir()?;
/// let net = Net { fc };
/// net.to_lora(&LoraConfig::new(2).target_modules(["fc"]))?.save_adapter(dir.path())?;
/// let Inspection::Adapter(report) = inspect(dir.path())? else { panic!() };
/// assert_eq!((report.layers[0].rank, report.parameters), (2, 14));
/// assert!(report.suspicious[0].starts_with("B is zero in every layer"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// If nothing is there, or a file cannot be read or is damaged. What is merely wrong with an adapter is
/// [suspicious](super::AdapterReport::suspicious), no error.
pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection> {
    inspect_with(path, &InspectOptions::new())
}

/// As [`inspect`], with options.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_with(path: impl AsRef<Path>, options: &InspectOptions) -> Result<Inspection> {
    let path = path.as_ref();
    Ok(match find::find(path)? {
        Some(located) => Inspection::Adapter(adapter::report(path, &located, options)?),
        None => Inspection::Checkpoint(checkpoint(path, options)?),
    })
}

fn checkpoint(path: &Path, options: &InspectOptions) -> Result<CheckpointReport> {
    let file = ModelFile::open(path)?;
    let (mut tensors, mut strange) = (Vec::new(), Vec::new());
    let mut dtypes: IndexMap<String, DtypeShare> = IndexMap::new();
    for name in file.names() {
        let Some(mut report) = file.report(&name) else {
            continue;
        };
        let share = dtypes.entry(report.dtype.clone()).or_default();
        share.tensors += 1;
        share.parameters += report.parameters;
        share.bytes += report.bytes;
        if options.values && file.holds_floats(&name) {
            report.fill(&file.tensor(&name)?, &mut strange)?;
            // A bias of zeros is common, a weight is not.
            if report.norm == Some(0.0) && report.shape.len() > 1 {
                strange.push(format!("`{}` is zero everywhere", shorten(&name)));
            }
        }
        tensors.push(report);
    }
    if tensors.is_empty() {
        return Err(Error::file(path, "holds no tensor"));
    }
    Ok(CheckpointReport {
        path: path.into(),
        format: file.format().into(),
        files: file.files(),
        suspicious: strange,
        settings: file.settings()?,
        parameters: tensors.iter().map(|tensor| tensor.parameters).sum(),
        bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        tensors,
        dtypes,
    })
}
