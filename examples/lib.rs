//! The example programs and what they share.

pub mod args;
pub mod bundled;
pub mod checkpoint;
pub mod finetune;
pub mod images;
pub mod interrupt;
pub mod pretrain;
pub mod pretrain_text;
pub mod program;
pub mod rank;
pub mod step_bench;
pub mod summary;
pub mod threads;
pub mod training;
pub mod user_convnext;
pub mod user_llama;
