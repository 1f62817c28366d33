//! What the programs about text share.

mod model;
mod options;

pub use model::{Source, directory};
pub use options::TuningArgs;
