//! llama.cpp's format, GGUF, for adapters and for models.
//!
//! `archs` is the table of llama.cpp's names, `names` looks names up, `rows` has llama.cpp's order of
//! rows, `header` reads a header within bounds, `types` knows GGML's types, `file` reads a model's tensors.

pub(crate) mod archs;
mod file;
pub(crate) mod header;
pub(crate) mod names;
pub(crate) mod rows;
pub(crate) mod types;

pub(crate) use file::GgufFile;

/// Where tensors begin, unless a file says otherwise.
pub(crate) const ALIGNMENT: u64 = 32;
