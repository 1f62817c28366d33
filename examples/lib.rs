//! What the example programs share.

pub mod checkpoint;
pub mod finetune;
pub mod images;
pub mod memory;
pub mod training;
pub mod user_convnext;
