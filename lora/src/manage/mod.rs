//! What a LoRA model can do with its adapters.

mod active;
mod add;
mod backward;
mod checks;
mod combine;
mod device;
mod gradients;
mod merge;
mod state;
mod status;
mod summary;
pub(crate) mod tie;
mod transfer;
mod views;
mod weighted;

pub(crate) use active::{
    activate, activate_layer, active, is_trained, names, reactivate, set_active,
    set_adapter_trainable, set_scale,
};
pub(crate) use add::{add, delete, rename, ties};
pub(crate) use backward::{backward, check_loss};
pub(crate) use checks::{check_new, checked, refuse_merged, unknown};
pub use combine::{Combination, CombineOptions, MajoritySign};
pub(crate) use combine::{Source, combine};
pub(crate) use device::{deep_clone, to_device, to_dtype};
pub use gradients::GradientCheck;
pub(crate) use gradients::check_gradients;
pub(crate) use merge::{
    is_merged, merge, merge_adapters, merge_in_full, merged, unmerge, unmerge_adapters,
};
pub(crate) use state::{ModelForm, load as load_state, save as save_state};
pub use status::{LayerStatus, ModelStatus, State};
pub(crate) use status::{layer_status, model_status};
pub(crate) use summary::oversized;
pub use summary::{Summary, SummaryRow};
pub(crate) use tie::base_id;
pub(crate) use transfer::assign_to_adapter;
pub use transfer::transfer_weights;
pub(crate) use views::{disabled, for_rows};
pub(crate) use weighted::add_weighted;
