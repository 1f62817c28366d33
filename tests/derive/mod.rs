//! What the macros make.

mod forward;
mod shapes;
