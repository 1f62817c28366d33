//! Adapters in the directory format of [PEFT](https://github.com/huggingface/peft), both ways.
//!
//! A directory holds `adapter_config.json` and `adapter_model.safetensors`. What is saved here
//! loads in PEFT and gives the same outputs, and the other way round, for plain LoRA on linear,
//! convolution and embedding layers, with trained biases and fully trained modules. The format is
//! that of PEFT 0.21.2.
//!
//! [`save_adapter`](crate::LoraModule::save_adapter) writes a directory,
//! [`load_adapter`](crate::LoraModule::load_adapter) reads one into a LoRA model, and
//! [`with_adapter`](crate::LoraModel::with_adapter) makes the LoRA model that a directory
//! describes.
//!
//! Loading is strict where PEFT is not: PEFT warns of a missing key, passes over an unexpected one
//! in silence, and lets a file overwrite weights of the base model. Here all of that is an error,
//! every problem is reported at once, and the model is then as it was. Pickle files
//! (`adapter_model.bin`) are never read. Entries of the configuration that match nothing in the
//! model are accepted, as every tensor of the file must find its place.
//!
//! What PEFT can do and no layer here can is refused by name when a configuration becomes the
//! settings of a model, see [`AdapterConfig::to_lora_config`]; [`AdapterConfig::read`] alone keeps
//! all of it.
//!
//! # Without the model's code
//!
//! [`merge_checkpoint`] merges an adapter into a checkpoint on disk. [`merged_var_builder`] gives
//! the merged weights to any model that loads from candle's `VarBuilder`. Both know every form of
//! LoRA that PEFT can merge, and refuse what would go wrong in silence.
//!
//! # Files from elsewhere
//!
//! Of a file nothing is believed: headers are read up to a limit and checked as a whole (lengths,
//! overlapping places, names that come twice), a shape is compared with the model's before memory is
//! taken for it, JSON is read to a depth and a size, values must be finite, and the names in an index
//! and [of adapters](check_name) are no paths.

mod compare;
mod config;
mod describe;
mod files;
mod gguf;
mod load;
mod lora_config;
mod merge;
mod names;
mod parse;
mod replace;
mod save;
mod tensor_file;
mod unique;
mod update;
mod weights;
mod write_json;

pub use config::{AdapterConfig, InitWeights, OneOrMany, TaskType, TokenIndices};
pub use gguf::{GgufOptions, adapter_to_gguf, gguf_to_adapter};
pub use merge::{
    MergeCheck, MergeOptions, MergeReport, merge_checkpoint, merge_checkpoint_with,
    merged_var_builder, merged_var_builder_with,
};
pub use names::{adapters_in, check_name};
pub use save::SaveOptions;

pub(crate) use load::{add, load, load_new, swap};
pub(crate) use save::save_all;

/// The file that describes an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The file with an adapter's weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What PEFT puts before the path of every module of the base model.
const PREFIX: &str = "base_model.model.";
