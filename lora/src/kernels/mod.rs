//! Compute kernels for the CPU: slices in, slices out, no tensors and no graph.

pub(crate) mod activation;
pub(crate) mod adapted;
pub(crate) mod attention;
pub(crate) mod blocks;
pub(crate) mod buffer;
pub(crate) mod conv;
pub(crate) mod depthwise;
pub(crate) mod embedding;
pub(crate) mod linear;
pub(crate) mod low_rank;
pub(crate) mod matrix;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod rope;
pub mod simd;
pub(crate) mod softmax;
pub(crate) mod window;
