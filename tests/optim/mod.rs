//! Optimisers against PyTorch, PEFT and transformers, and where ours go further.

mod adamw;
mod gradients;
mod reference;
mod refused;
mod resume;
mod several;
mod support;
