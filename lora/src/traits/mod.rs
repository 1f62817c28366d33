//! [`LoraModel`] and [`LoraModule`], the two traits that all else stands on, and the walk over a
//! model's layers.

mod model;
mod module;
mod params;
mod tuples;
mod visit;

pub use model::{Lora, LoraLayer, LoraModel};
pub use module::LoraModule;
pub use params::NamedParam;
pub(crate) use params::{
    Trainable, each_layer, each_layer_mut, named, trainable, try_each_layer, try_each_layer_mut,
};
pub use tuples::Tuples;
pub(crate) use tuples::{array, sorted};
pub use visit::{Cursor, CursorMut};
