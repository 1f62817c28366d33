//! What looking into a file finds.

use crate::Result;
use crate::error::shorten;
use crate::peft::product::Spectrum;
use crate::peft::values::Values;
use candle_core::Tensor;
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// What a file or a directory holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Inspection {
    /// An adapter.
    Adapter(AdapterReport),
    /// The weights of a model.
    Checkpoint(CheckpointReport),
}

impl Inspection {
    /// Whatever should not be so: see [`AdapterReport::suspicious`].
    pub fn suspicious(&self) -> &[String] {
        match self {
            Self::Adapter(report) => &report.suspicious,
            Self::Checkpoint(report) => &report.suspicious,
        }
    }
}

/// An adapter of any format.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AdapterReport {
    /// The path that was given.
    pub path: PathBuf,
    /// What wrote the adapter: PEFT, kohya, diffusers, mlx-lm, llama.cpp.
    pub format: String,
    /// What should not be so: B zero, values that are not finite, directions of the rank that are not
    /// used, a matrix without the other, an alpha of zero, names and settings that are not known.
    pub suspicious: Vec<String>,
    /// The settings as the file has them.
    pub settings: Map<String, Value>,
    /// The layers in the order of their numbers.
    pub layers: Vec<LayerReport>,
    /// Tensors that are no part of an update of low rank: modules trained in full, biases, rows.
    pub others: Vec<TensorReport>,
    /// Number of values in all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// The root of the sum of the squares of the layers' norms; `None` if some layer has none.
    pub norm: Option<f64>,
}

/// A layer of an adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LayerReport {
    /// The layer's name in the file.
    pub name: String,
    /// Outputs of B.
    pub outputs: usize,
    /// Inputs of A; for a convolution those of all places of the kernel.
    pub inputs: usize,
    /// The rank; for experts that of each.
    pub rank: usize,
    /// The number of experts that share the tensors; 1 for other layers.
    pub experts: usize,
    /// The factor of B·A.
    pub scaling: f64,
    /// The dtype of the tensors; of several, each.
    pub dtype: String,
    /// Whether the layer has magnitudes (DoRA), so that the update is not all that changes.
    pub dora: bool,
    /// Number of values.
    pub parameters: u64,
    /// Bytes of the tensors.
    pub bytes: u64,
    /// What the singular values of s·B·A tell; `None` if a matrix is missing, does not fit the other or
    /// holds values that are not finite, or if values were not read.
    pub update: Option<Spectrum>,
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TensorReport {
    /// The tensor's name.
    pub name: String,
    /// The dtype's name in the file.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Number of values.
    pub parameters: u64,
    /// Bytes in the file.
    pub bytes: u64,
    /// The Frobenius norm; `None` if the values were not read, or are no floats.
    pub norm: Option<f64>,
    /// The largest value, without its sign.
    pub largest: Option<f64>,
}

impl TensorReport {
    /// Adds what the values say, or notes that they are not finite.
    pub(super) fn fill(&mut self, tensor: &Tensor, strange: &mut Vec<String>) -> Result<()> {
        let values = Values::of(tensor)?;
        if values.wrong > 0 {
            let (short, wrong) = (shorten(&self.name), values.wrong);
            strange.push(format!(
                "`{short}` holds {wrong} values that are NaN or infinite"
            ));
        } else {
            self.norm = Some(values.norm());
            self.largest = Some(values.largest);
        }
        Ok(())
    }
}

/// The weights of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CheckpointReport {
    /// The path that was given.
    pub path: PathBuf,
    /// `safetensors` or `GGUF`.
    pub format: String,
    /// Number of files.
    pub files: usize,
    /// What should not be so: values that are not finite, weights of zeros.
    pub suspicious: Vec<String>,
    /// Short settings: those of `config.json`, or the fields of a GGUF file.
    pub settings: Map<String, Value>,
    /// All tensors, in the order of the files.
    pub tensors: Vec<TensorReport>,
    /// Number and size of the tensors of each dtype.
    pub dtypes: IndexMap<String, DtypeShare>,
    /// Number of values in all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// How much there is of a dtype.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DtypeShare {
    /// Number of tensors.
    pub tensors: usize,
    /// Number of values.
    pub parameters: u64,
    /// Bytes.
    pub bytes: u64,
}
