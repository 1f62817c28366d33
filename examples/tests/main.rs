//! The parts of the programs. The programs themselves are run by `programs`.

mod common;
mod embeddings;
mod finetune;
mod output;
mod sheets;
mod texts;
mod user_bert;
mod user_convnext;
