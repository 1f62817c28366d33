//! [`AdapterDir`]: an adapter's directory, and how it is to be read.

use crate::error::warn;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Called with what a reader of the directory may want to know.
type Report = Arc<dyn Fn(&str) + Send + Sync>;

/// An adapter's directory, and how it is to be read where its files do not tell, or where a reading
/// may surprise.
///
/// Whatever reads a directory takes a path, or this: [`with_adapter`](crate::LoraModel::with_adapter),
/// [`load_adapter`](crate::LoraModule::load_adapter),
/// [`load_adapter_as`](crate::LoraModule::load_adapter_as),
/// [`hot_swap`](crate::LoraModule::hot_swap), [`merge_checkpoint`](super::merge_checkpoint),
/// [`merged_var_builder`](super::merged_var_builder), [`adapter_to_gguf`](super::adapter_to_gguf).
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::Linear;
/// use lora::peft::AdapterDir;
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// #[derive(Clone, Debug, LoraModel)]
/// struct Encoder { fc: Linear }
/// #[derive(Clone, Debug, LoraModel)]
/// struct Net { encoder: Encoder }
///
/// let fc = Linear::new(Tensor::randn(0f32, 1., (4, 3), &Device::Cpu)?, None);
/// let encoder = Encoder { fc };
/// let dir = tempfile::tempdir()?;
/// encoder.to_lora(&LoraConfig::new(2).target_modules(["fc"]))?.save_adapter(dir.path())?;
///
/// // The file says `fc`, the model `encoder.fc`: the one layer that can be meant.
/// let net = Net { encoder };
/// let model = net.with_adapter(dir.path())?;
/// assert_eq!(model.layer_status()[0].name, "encoder.fc");
/// // Where several can be meant:
/// let model = net.with_adapter(AdapterDir::new(dir.path()).rename("", "encoder"))?;
/// # let _ = model;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct AdapterDir {
    pub(super) path: PathBuf,
    pub(super) renames: Vec<(String, String)>,
    pub(super) trained_embeddings: bool,
    pub(super) grow_vocabulary: bool,
    pub(super) old_experts: Option<bool>,
    pub(super) weight: f64,
    report: Option<Report>,
}

impl AdapterDir {
    /// The directory, read as its files say. Everything that may surprise is an error.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().into(),
            renames: Vec::new(),
            trained_embeddings: false,
            grow_vocabulary: false,
            old_experts: None,
            weight: 1.0,
            report: None,
        }
    }

    /// Replaces the prefix `from` of the file's paths by `to`, in whole segments. The first rule
    /// that fits a path decides. A segment `*` of `from` stands for any one segment, which takes the
    /// place of the `*` in `to`: `rename("layers.*.attention.query", "layers.*.q_proj")`.
    ///
    /// Without any rule, prefixes that were added, lost or moved are found by themselves where only
    /// one reading fits the model.
    pub fn rename(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.renames.push((from.into(), to.into()));
        self
    }

    /// Accepts that an embedding or a head in the file differs from the model's: the adapter's
    /// training changed it. The layer then counts as one of
    /// [`modules_to_save`](crate::LoraConfig::modules_to_save). If the layer has an update of low
    /// rank, too, the update is added to the file's weight.
    pub fn trained_embeddings(mut self, accept: bool) -> Self {
        self.trained_embeddings = accept;
        self
    }

    /// Accepts a vocabulary that grew in training: the model's embedding and head get the file's
    /// further rows. The rows that both have must be equal, or
    /// [`trained_embeddings`](Self::trained_embeddings) accepts that they are not.
    pub fn grow_vocabulary(mut self, accept: bool) -> Self {
        self.grow_vocabulary = accept;
        self
    }

    /// Whether the adapters of experts were written by PEFT up to 0.18, which has A and B the other
    /// way round. Without this option the file's `peft_version` and the shapes tell. Neither does
    /// for weights that are square.
    pub fn old_experts(mut self, old: bool) -> Self {
        self.old_experts = Some(old);
        self
    }

    /// Reads the adapter with this multiple of its update: every alpha is multiplied. Modules, biases
    /// and rows that were trained in full are no multiples of anything and stay as they are.
    pub fn weight(mut self, weight: f64) -> Self {
        self.weight = weight;
        self
    }

    /// Calls `report` with everything that was accepted and that the caller may want to know:
    /// prefixes that moved, settings that are not known. Without this call a warning says so, to
    /// the `log` crate or, where the program has no logger, to the error output.
    pub fn report(mut self, report: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.report = Some(Arc::new(report));
        self
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the caller.
    pub(super) fn tell(&self, note: &str) {
        match &self.report {
            Some(report) => report(note),
            None => warn(&format!("{}: {note}", self.path.display())),
        }
    }
}

impl<P: AsRef<Path>> From<P> for AdapterDir {
    fn from(path: P) -> Self {
        Self::new(path)
    }
}

impl fmt::Debug for AdapterDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterDir")
            .field("path", &self.path)
            .field("renames", &self.renames)
            .field("trained_embeddings", &self.trained_embeddings)
            .field("grow_vocabulary", &self.grow_vocabulary)
            .field("old_experts", &self.old_experts)
            .finish_non_exhaustive()
    }
}
