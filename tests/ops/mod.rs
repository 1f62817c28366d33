//! The ops against PyTorch and their definitions, in every form that a tensor takes, and the graph
//! that they make.

mod attention;
mod blocks;
mod candle;
mod convolutions;
mod dora;
mod errors;
mod fixtures;
mod gated;
pub mod gradients;
mod graph;
mod halves;
mod losses;
mod norms;
mod self_attention;
mod threads;
mod views;
mod visible;
