//! What the code of `#[derive(LoraModel)]` calls, and what tests reach.

pub use crate::layers::{
    BiasField, LoraOwnLinear, OwnLinear, WeightField, adapt_own_linear as own_linear,
};
pub use crate::traits::Tuples;
pub use crate::{
    Builder, Cursor, CursorMut, Lora, LoraLayer, LoraModel, LoraModule, Mark, Result, WithLora,
};
pub use candle_core::Tensor;
pub use core::clone::Clone;
pub use core::fmt::{Debug, Formatter, Result as FmtResult};
pub use core::option::Option::{self, None, Some};
pub use core::result::Result::{Err, Ok};

/// For tests: makes the kernels of the whole process use these vector instructions. Where the
/// processor lacks them, the kernels use the next lower level; the level in use is returned.
pub use crate::kernels::simd::{Level, force_level as force_simd};

/// For tests: how many recorded values of ops the process holds, from which a graph leads on.
pub use crate::ops::recorded_values;

pub use crate::ops::{Candle, Function, Other, Receiver};

/// The value of a field under `#[lora(skip)]`. All copies go through this function: where the type is
/// not `Clone`, rustc says the same at each, and shows one error.
pub fn skipped<T: Clone>(value: &T) -> T {
    value.clone()
}

/// A clone of a field whose parts have attributes, by the clones of its tuples.
pub fn cloned_parts<T: Tuples, L>(field: &T, clone: impl Fn(&T::Tuple) -> L) -> T::With<L> {
    match field.map("", &mut |_, tuple| Ok(clone(tuple))) {
        Ok(clone) => clone,
        Err(_) => unreachable!("a clone does not fail"),
    }
}

/// Shows a struct. Without `all` there are fields that cannot be shown.
pub fn debug_struct(
    f: &mut Formatter<'_>,
    name: &str,
    fields: &[(&str, &dyn Debug)],
    all: bool,
) -> FmtResult {
    let mut shown = f.debug_struct(name);
    for (name, value) in fields {
        shown.field(name, value);
    }
    match all {
        true => shown.finish(),
        false => shown.finish_non_exhaustive(),
    }
}

/// The same of a tuple.
pub fn debug_tuple(
    f: &mut Formatter<'_>,
    name: &str,
    fields: &[&dyn Debug],
    all: bool,
) -> FmtResult {
    let mut shown = f.debug_tuple(name);
    for value in fields {
        shown.field(value);
    }
    match all {
        true => shown.finish(),
        false => shown.finish_non_exhaustive(),
    }
}

/// The type of a field under `#[lora(skip)]`. Its constant is true for a layer of candle's: rustc
/// takes the inherent constant where `T` is a model, and that of [`NotAModel`] elsewhere.
pub struct Skipped<T>(core::marker::PhantomData<T>);

impl<T: LoraModel> Skipped<T> {
    pub const IS_LAYER: bool = T::IS_LAYER;
}

/// See [`Skipped`].
pub trait NotAModel {
    const IS_LAYER: bool = false;
}

impl<T> NotAModel for Skipped<T> {}

/// The part, if it may carry `#[lora(rank)]`.
///
/// The bound means `M: LoraLayer`. Written this way, a type that is no model at all gives one
/// error, not two.
pub fn layer<M: LoraModel>(part: &M) -> &M
where
    <M::Lora as LoraModule>::Base: LoraLayer,
{
    part
}
