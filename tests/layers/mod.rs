//! Every layer by itself.

mod gradients;
mod life;
