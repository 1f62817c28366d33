//! Merging an adapter into a checkpoint without the model's code. The adapter's keys say which
//! tensors it changes, the shapes say how.

mod change;
mod layers;
mod merged;
mod modules;
mod parameters;
mod plain;
mod plan;
mod planner;
mod settings;
mod tying;
mod var_builder;
mod write;

pub use var_builder::{MergeCheck, merged_var_builder, merged_var_builder_with};
pub use write::{MergeReport, merge_checkpoint, merge_checkpoint_with};

pub(in crate::peft) use plan::Plan;
pub(in crate::peft) use write::is_same_file;

use super::AdapterDir;
use candle_core::DType;
use std::sync::Arc;

/// Called with the number of tensors done, the number of all, and the name of the last.
type Progress = Arc<dyn Fn(usize, usize, &str) + Send + Sync>;

/// How an adapter is merged, where the files do not tell or the result may surprise.
///
/// ```
/// use lora::peft::MergeOptions;
///
/// let options = MergeOptions::new()
///     .copy_files(true)
///     .progress(|done, all, name| eprintln!("{done}/{all} {name}"));
/// # let _ = options;
/// ```
#[derive(Clone, Default)]
pub struct MergeOptions {
    first: Vec<AdapterDir>,
    copy_files: bool,
    pub(in crate::peft) dtype: Option<DType>,
    new_tensors: bool,
    residual_base: bool,
    keep_tied: bool,
    untie: bool,
    fan_in_fan_out: Option<bool>,
    transposed_parameters: Option<bool>,
    parameter_order: Vec<String>,
    rename: Vec<(String, String)>,
    progress: Option<Progress>,
}

impl MergeOptions {
    /// Everything that may surprise is an error.
    pub fn new() -> Self {
        Self::default()
    }

    /// Merges these adapters first, in this order, each into what the ones before made. The result is that
    /// of PEFT's `merge_and_unload` with several adapters, but it is rounded once.
    ///
    /// Updates add up, in any order. An adapter with DoRA scales the weight that the adapters before it
    /// made, by its magnitude over the norm that the base's weight has with its own update alone: another
    /// order gives another result. The same module, bias or row that two adapters trained in full, to
    /// different values, is an error.
    ///
    /// ```no_run
    /// use lora::peft::{MergeOptions, merge_checkpoint_with};
    ///
    /// let options = MergeOptions::new().first(["style"]);
    /// merge_checkpoint_with("llama", "facts", "merged", &options)?; // style, then facts
    /// # Ok::<(), lora::Error>(())
    /// ```
    pub fn first<D: Into<AdapterDir>>(mut self, adapters: impl IntoIterator<Item = D>) -> Self {
        self.first = adapters.into_iter().map(Into::into).collect();
        self
    }

    /// Copies the other files of the base's directory (`config.json`, the tokenizer, ..): those
    /// directly in it that are not hidden and hold no weights. The copy of `config.json` gets the
    /// [settings](MergeReport::settings) that are true of the result. For a base that is a directory
    /// or an index.
    pub fn copy_files(mut self, copy: bool) -> Self {
        self.copy_files = copy;
        self
    }

    /// The dtype of the result: F64, F32, F16 or BF16, for all tensors of these dtypes. Each is rounded
    /// once, from its sum. Unless this is set, every tensor keeps the base's dtype; those of a GGUF file are
    /// in F32.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Accepts a tensor that an adapter brings in full even if the base has no such tensor (a
    /// classifier on a bare language model), a tensor of another shape (a larger vocabulary), or an
    /// embedding with other values.
    pub fn new_tensors(mut self, accept: bool) -> Self {
        self.new_tensors = accept;
        self
    }

    /// Says that the base is the residual base, not the original: its weights already lost what the
    /// adapter starts with (PiSSA, OLoRA, ..).
    pub fn residual_base(mut self, residual: bool) -> Self {
        self.residual_base = residual;
        self
    }

    /// Changes an embedding whose weight is also the head's, although the adapter was trained
    /// without changing the head. PEFT merges this way.
    pub fn keep_tied(mut self, keep: bool) -> Self {
        self.keep_tied = keep;
        self
    }

    /// Gives a head that shares the embedding's weight a weight of its own, `lm_head.weight`, if
    /// the adapter changes only one of the two, or each in its own way (DoRA). The head has the rows
    /// that the embedding had in training. The model must then be loaded with `tie_word_embeddings`
    /// false, which [`copy_files`](Self::copy_files) writes into the copy of `config.json`.
    ///
    /// A head that is in the checkpoint shares the embedding's weight if the two are equal, and
    /// `config.json` does not say otherwise.
    pub fn untie(mut self, untie: bool) -> Self {
        self.untie = untie;
        self
    }

    /// Whether square weights of linear layers are stored as (in, out), as transformers' `Conv1D`
    /// has them. Other weights tell by their shapes.
    pub fn fan_in_fan_out(mut self, transposed: bool) -> Self {
        self.fan_in_fan_out = Some(transposed);
        self
    }

    /// Whether experts' square weights are stored as (experts, in, out). Other weights tell by
    /// their shapes.
    pub fn transposed_parameters(mut self, transposed: bool) -> Self {
        self.transposed_parameters = Some(transposed);
        self
    }

    /// Names the adapted parameters of a module in the order of the model's code. A name is the end
    /// of a parameter's path, in whole segments. Needed if two parameters have the same shape.
    pub fn parameter_order<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.parameter_order = names.into_iter().map(Into::into).collect();
        self
    }

    /// The same as [`AdapterDir::rename`](super::AdapterDir::rename).
    pub fn rename(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.rename.push((from.into(), to.into()));
        self
    }

    /// Calls `call` after each tensor that is written, with the number of tensors done, the number
    /// of all, and the tensor's name.
    pub fn progress(mut self, call: impl Fn(usize, usize, &str) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(call));
        self
    }
}
