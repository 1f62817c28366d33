//! Compute kernels for the CPU: slices in, slices out, no tensors and no graph.

pub(crate) mod activation;
pub(crate) mod adapted;
pub(crate) mod affine;
pub(crate) mod attention;
pub(crate) mod blocks;
pub(crate) mod buffer;
pub(crate) mod conv;
pub(crate) mod cross_entropy;
pub(crate) mod depthwise;
pub(crate) mod dora;
pub(crate) mod dropout;
pub(crate) mod embedding;
pub(crate) mod few_rows;
mod functions;
pub(crate) mod gate;
pub(crate) mod group_norm;
pub(crate) mod layout;
pub(crate) mod low_rank;
pub(crate) mod matrix;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod quantised;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod self_attention;
pub mod simd;
pub(crate) mod softmax;
pub(crate) mod sums;
pub(crate) mod transpose;
pub(crate) mod window;

/// Numbers that one task handles: enough to be worth a thread, few enough to stay in its cache.
const CHUNK: usize = 1 << 14;
