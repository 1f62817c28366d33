//! The example programs and what they share.

pub mod agreement;
pub mod args;
pub mod bundled;
pub mod checkpoint;
pub mod finetune;
pub mod finetune_embeddings;
pub mod finetune_lm;
pub mod finetune_text;
pub mod images;
pub mod interrupt;
pub mod output;
pub mod pretrain;
pub mod pretrain_text;
pub mod program;
pub mod rank;
pub mod results;
pub mod step_bench;
pub mod steps;
pub mod summary;
pub mod text;
pub mod threads;
pub mod training;
pub mod user_bert;
pub mod user_convnext;
pub mod user_llama;
