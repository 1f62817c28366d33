//! Looking into files: what an adapter or a checkpoint holds, and how two of a kind differ.

mod adapter;
mod diff;
mod held;
mod inspect;
mod model;
mod report;

pub use diff::{AdapterDiff, CheckpointDiff, Diff, LayerDiff, SettingDiff, TensorDiff, diff};
pub use inspect::{InspectOptions, inspect, inspect_with};
pub use report::{
    AdapterReport, CheckpointReport, DtypeShare, Inspection, LayerReport, TensorReport,
};

pub(super) use model::ModelFile;
