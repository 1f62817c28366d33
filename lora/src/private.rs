//! What the code of `#[derive(LoraModel)]` calls, and what tests reach.

pub use crate::{
    Builder, Cursor, CursorMut, Lora, LoraLayer, LoraModel, LoraModule, Mark, Result, WithLora,
};
pub use core::clone::Clone;
pub use core::fmt::{Debug, Formatter, Result as FmtResult};
pub use core::option::Option::{None, Some};
pub use core::result::Result::{Err, Ok};

/// For tests: makes the kernels use these vector instructions, or the best below that the processor
/// has, which is returned. It concerns the whole process.
pub use crate::kernels::simd::{Level, force_level as force_simd};

/// For tests: how many values of ops the process holds that a graph leads on from.
pub use crate::ops::recorded_values;

/// The part, if it may carry `#[lora(rank)]`.
///
/// The bound is `M: LoraLayer`, said so that a type which is no model at all has one error, not two.
pub fn layer<M: LoraModel>(part: &M) -> &M
where
    <M::Lora as LoraModule>::Base: LoraLayer,
{
    part
}
