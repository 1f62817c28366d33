//! Making adapters from files: of another rank, of several, of two checkpoints.

mod combine;
mod extract;
mod low_rank;
mod resize;
mod rest;

pub use combine::{CombineReport, CombinedLayer, combine_files};
pub use extract::{ExtractOptions, ExtractReport, ExtractedLayer, LeftTensor, extract};
pub use resize::{ResizeReport, ResizedLayer, resize};
