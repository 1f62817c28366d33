//! llama.cpp's format, GGUF, for adapters and for models.
//!
//! `archs` is the table of llama.cpp's names, `names` looks names up, `rows` has llama.cpp's order of
//! rows, `header` reads a header within bounds, `types` knows GGML's types, `file` reads a model's tensors.
//! `families` are the architectures whose models are read whole, `weights` has a model's tensors under
//! transformers' names, `config` and `tokenizer` make transformers' files of the metadata, `checkpoint` puts
//! all of these together, `open` opens a checkpoint of any format.
//!
//! # No file is mapped into memory
//!
//! A tensor is read when it is asked for, from the place that the checked header names: as
//! [`TensorFile`](crate::file::TensorFile) reads safetensors. Another program may change a file while the file
//! is mapped, which is undefined behaviour in Rust; a file that becomes shorter ends the process. Here both are
//! an error, or other values. Mapping would spare no memory either: candle's quantised tensors own their
//! blocks, so that a mapped page is copied, too. Reading a model takes the weights and one tensor more
//! (`tests/memory.rs`).

pub(crate) mod archs;
mod checkpoint;
pub(crate) mod config;
mod families;
mod file;
pub(crate) mod header;
pub(crate) mod names;
mod open;
pub(crate) mod rows;
pub(crate) mod tokenizer;
pub(crate) mod types;
mod weights;

pub(crate) use checkpoint::of_any;
pub(crate) use file::{GgufFile, all_parts};
pub(crate) use header::Info;
pub use open::is_gguf;
pub(crate) use open::{find, open, open_directory};
pub(crate) use weights::{MOST_EXPERTS, Part, Weights};

/// Where tensors begin, unless a file says otherwise.
pub(crate) const ALIGNMENT: u64 = 32;
