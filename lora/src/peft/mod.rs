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
//! | put a directory's adapter in place of another | [`hot_swap`](crate::LoraModule::hot_swap) |
//! | put a directory's values into the active adapter, of the same form | [`load_adapter`](crate::LoraModule::load_adapter) |
//! | write all adapters, or some | [`save_adapter`](crate::LoraModule::save_adapter), [`save_adapter_with`](crate::LoraModule::save_adapter_with) |
//! | find the adapters in a directory | [`adapters_in`] |
//! | read the settings alone | [`LoraConfig::from_pretrained`](crate::LoraConfig::from_pretrained), [`AdapterConfig::read`] |
//! | merge into a checkpoint on disk, or of a GGUF file into a new one | [`merge_checkpoint`] |
//! | merge several, one after the other | [`MergeOptions::first`] |
//! | load a merged model | [`merged_var_builder`] |
//! | merge an adapter into a model in a GGUF file | [`merge_gguf`] |
//! | start an adapter with what quantising cost its base | [`replace_lora_weights_loftq`] |
//! | exchange adapters with llama.cpp | [`adapter_to_gguf`], [`gguf_to_adapter`] |
//! | exchange adapters with kohya, diffusers, mlx-lm, llama.cpp, each with each | [`import`] |
//! | see what an adapter or a checkpoint holds | [`inspect`] |
//! | see how two adapters or two checkpoints differ | [`diff`] |
//! | make an adapter from two checkpoints | [`extract`] |
//! | make one adapter of several, or one of another rank, without a model | [`combine_files`], [`resize`] |
//! | say how to read what a directory leaves open | [`AdapterDir`] |
//!
//! # What is in a file
//!
//! The low-rank matrices of linear layers (stored either way), convolutions, embeddings and bare
//! weights of experts, with rsLoRA, DoRA, a bias on B, ranks and alphas by pattern. Biases, modules
//! and rows of embeddings that are trained in full. Heads that share an embedding's weight.
//!
//! Some adapters fit only a *residual base*: a base whose weights lost what the adapter starts with
//! (PiSSA, OLoRA, CorDA, LoRA-GA). Saving converts them, as PEFT does on demand: they get twice the
//! rank, and fit the original base. Raw files of PiSSA and OLoRA are read. Those of `pissa_niter`,
//! CorDA, LoRA-GA and PEFT's LoftQ are refused, as their base cannot be made again. An adapter of
//! this crate's LoftQ records how its base was quantised: loading quantises the base again, to the
//! same values. PEFT cannot load such an adapter. Nor is an adapter converted that fits a residual base
//! in blocks, PiSSA's or OLoRA's of a quantised layer: its file is raw, and loading it onto the same
//! quantised base makes the same blocks again.
//!
//! Adapters with activated LoRA, Arrow, BD-LoRA, KaSA, Megatron layers, MonteCLoRA, QALoRA, VeLoRA
//! or replicated layers are not supported. They are refused by name when a configuration becomes
//! the settings of a model, see [`AdapterConfig::to_lora_config`]; [`AdapterConfig::read`] alone
//! keeps all settings.
//!
//! # Strictness
//!
//! Loading is strict where PEFT is not: PEFT warns of a missing key, passes over an unexpected key
//! in silence, and lets a file overwrite weights of the base model. Here each of these is an error.
//! Every problem is reported at once, and the model stays as it was. Pickle files
//! (`adapter_model.bin`) are never read. Entries of the configuration that match nothing in the
//! model are accepted, as every tensor of the file must find its place anyway.
//!
//! Strict means that no number is wrong in silence. A harmless difference is accepted, and
//! [reported](AdapterDir::report): an adapter's name in the keys, a prefix that moved and has one
//! reading that fits the model, settings that are not known. The base's own weights beside the
//! matrices are left out. A difference that changes the model needs an option of [`AdapterDir`].
//!
//! # Without the model's code
//!
//! [`merge_checkpoint`] merges an adapter into a checkpoint on disk. [`merged_var_builder`] gives
//! the merged weights to any model that loads from candle's `VarBuilder`. Beside the forms above,
//! both know the attention layers of PyTorch. Both refuse everything that would go wrong in
//! silence, and convolutions with groups, whose merged weight the model could not load.
//!
//! # Files from elsewhere
//!
//! No file is trusted. Headers are read up to a limit and checked as a whole: lengths, overlapping
//! places, names that come twice. A shape is compared with the model's before memory is taken for
//! it. JSON is read to a limited depth and size. Values must be finite. The names in an index and
//! [of adapters](check_name) must not be paths.

mod compare;
mod config;
mod describe;
mod dir;
mod embeddings;
mod experts;
mod files;
mod fused;
mod gguf;
pub mod import;
mod keys;
mod layers;
mod load;
mod loftq;
mod look;
mod make;
mod merge;
mod names;
mod product;
mod replace;
mod rounding;
mod save;
mod targets;
mod tensors;
mod values;
mod weights;

pub use crate::adapter::check_name;
pub use config::{AdapterConfig, InitWeights, OneOrMany, TaskType, TokenIndices};
pub use dir::AdapterDir;
pub use gguf::{
    GgufMergeReport, GgufOptions, adapter_to_gguf, gguf_to_adapter, merge_gguf, merge_gguf_with,
};
pub use loftq::{LoftqLayer, replace_lora_weights_loftq, replace_lora_weights_loftq_if};
pub use look::{
    AdapterDiff, AdapterReport, CheckpointDiff, CheckpointReport, Diff, DtypeShare, InspectOptions,
    Inspection, LayerDiff, LayerReport, SettingDiff, TensorDiff, TensorReport, diff, inspect,
    inspect_with,
};
pub use make::{
    CombineReport, CombinedLayer, ExtractOptions, ExtractReport, ExtractedLayer, LeftTensor,
    ResizeReport, ResizedLayer, combine_files, extract, resize,
};
pub use merge::{
    MergeCheck, MergeOptions, MergeReport, merge_checkpoint, merge_checkpoint_with,
    merged_var_builder, merged_var_builder_with,
};
pub use names::adapters_in;
pub use product::{RankChoice, Spectrum};
pub use save::SaveOptions;

pub(crate) use load::{add, load, load_new, swap};
pub(crate) use save::save_all;

/// The version of PEFT whose format is written.
const PEFT_VERSION: &str = "0.21.2";

/// The file that describes an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The file with an adapter's weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
