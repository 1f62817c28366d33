//! Adapters in the directory format of [PEFT](https://github.com/huggingface/peft), both ways.
//!
//! A directory holds `adapter_config.json` and `adapter_model.safetensors`. What is saved here
//! loads in PEFT and gives the same outputs, and the other way round. The format is that of PEFT
//! 0.21.2. [`coming_from_peft`](crate::coming_from_peft) has PEFT's calls and their counterparts.
//!
//! | to | use |
//! |---|---|
//! | make the LoRA model that a directory describes | [`with_adapter`](crate::LoraModel::with_adapter) |
//! | add a directory's adapter to a LoRA model | [`load_adapter_as`](crate::LoraModule::load_adapter_as) |
//! | put it in place of another | [`hot_swap`](crate::LoraModule::hot_swap) |
//! | put its values into the active adapter, of the same form | [`load_adapter`](crate::LoraModule::load_adapter) |
//! | write all adapters, or some | [`save_adapter`](crate::LoraModule::save_adapter), [`save_adapter_with`](crate::LoraModule::save_adapter_with) |
//! | find the adapters in a directory | [`adapters_in`] |
//! | read the settings alone | [`LoraConfig::from_pretrained`](crate::LoraConfig::from_pretrained), [`AdapterConfig::read`] |
//! | merge into a checkpoint on disk | [`merge_checkpoint`] |
//! | load a merged model | [`merged_var_builder`] |
//! | exchange adapters with llama.cpp | [`adapter_to_gguf`], [`gguf_to_adapter`] |
//!
//! # What is in a file
//!
//! The low-rank matrices of linear layers (stored either way), convolutions, embeddings and bare
//! weights of experts; with rsLoRA, DoRA, a bias on B, ranks and alphas by pattern; biases, modules
//! and rows of embeddings that are trained in full; heads that share an embedding's weight. Adapters
//! that took something out of the base weight (PiSSA, OLoRA, CorDA, LoRA-GA) are converted when
//! they are saved, as PEFT does on demand: they have twice the rank, and fit the original base. Raw
//! files of PiSSA and OLoRA are read; those of `pissa_niter`, CorDA, LoRA-GA and PEFT's LoftQ are
//! refused, as their base cannot be made again. An adapter of LoftQ from here says how its base was
//! quantised: loading it does so again, to the same values. PEFT cannot load it.
//!
//! Not read are adapters with activated LoRA, Arrow, BD-LoRA, KaSA, Megatron layers, MonteCLoRA,
//! QALoRA, VeLoRA or replicated layers. They are refused by name when a configuration becomes the
//! settings of a model, see [`AdapterConfig::to_lora_config`]; [`AdapterConfig::read`] alone keeps
//! all of it.
//!
//! # Strictness
//!
//! Loading is strict where PEFT is not: PEFT warns of a missing key, passes over an unexpected one
//! in silence, and lets a file overwrite weights of the base model. Here all of that is an error,
//! every problem is reported at once, and the model is then as it was. Pickle files
//! (`adapter_model.bin`) are never read. Entries of the configuration that match nothing in the
//! model are accepted, as every tensor of the file must find its place.
//!
//! # Without the model's code
//!
//! [`merge_checkpoint`] merges an adapter into a checkpoint on disk. [`merged_var_builder`] gives
//! the merged weights to any model that loads from candle's `VarBuilder`. Beside the forms above they
//! know the attention layers of PyTorch. They refuse what would go wrong in silence, and convolutions
//! with groups, whose merged weight the model could not load.
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
mod keys;
mod load;
mod merge;
mod names;
mod replace;
mod save;
mod weights;

pub use crate::adapter::check_name;
pub use config::{AdapterConfig, InitWeights, OneOrMany, TaskType, TokenIndices};
pub use gguf::{GgufOptions, adapter_to_gguf, gguf_to_adapter};
pub use merge::{
    MergeCheck, MergeOptions, MergeReport, merge_checkpoint, merge_checkpoint_with,
    merged_var_builder, merged_var_builder_with,
};
pub use names::adapters_in;
pub use save::SaveOptions;

pub(crate) use load::{add, load, load_new, swap};
pub(crate) use save::save_all;

/// The file that describes an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The file with an adapter's weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
