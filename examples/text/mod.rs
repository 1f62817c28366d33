//! What the programs about text share.

mod model;
mod options;
mod tuned;

pub use model::{Source, directory};
pub use options::{TuningArgs, alpha};
pub use tuned::Tuned;
