//! Compute kernels for the CPU: slices in, slices out, no tensors and no graph.

pub(crate) mod activation;
pub(crate) mod buffer;
pub(crate) mod conv;
pub(crate) mod depthwise;
pub(crate) mod layout;
pub(crate) mod linear;
pub(crate) mod matrix;
pub mod simd;
pub(crate) mod window;
