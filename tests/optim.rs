//! Optimisers against PyTorch, PEFT and transformers, and where ours go further.

#[path = "optim/adamw.rs"]
mod adamw;
#[path = "optim/gradients.rs"]
mod gradients;
#[path = "optim/reference.rs"]
mod reference;
#[path = "optim/several.rs"]
mod several;
#[path = "optim/support.rs"]
mod support;
