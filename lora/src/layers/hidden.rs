//! Candle's types that hide the layers within: they have no LoRA counterpart, and the compiler's message
//! says why and what to do.
//!
//! Each has an impl of [`LoraModel`] with a bound that never holds, so that the message is that of the
//! bound. The bound has a lifetime of its own, as rustc refuses one that is plainly false.

use crate::{Builder, Cursor, CursorMut, Error, LoraLayer, LoraModel, LoraModule, Result};
use candle_core::Tensor;
use candle_core::quantized::QTensor;
use candle_nn::{Func, FuncT, GRU, LSTM, Module, Sequential};
use std::convert::Infallible;
use std::fmt;
use std::fmt::Debug;
use std::marker::PhantomData;

/// Neither `Func` nor `FuncT` implements this trait.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is a closure, which hides its layers",
    label = "holds a closure",
    note = "make the closure a struct of its layers with `#[derive(LoraModel)]`, and call the layers in a method under `#[lora::forward]`",
    note = "if the closure holds no layers, mark the field `#[lora(skip)]`: its value is cloned"
)]
pub trait NotAClosure<'a> {}

/// Candle's `Sequential` does not implement this trait.
#[diagnostic::on_unimplemented(
    message = "`{Self}` hides the types of its layers",
    label = "holds layers of types that nothing knows",
    note = "`lora::layers::Sequential` and `lora::layers::seq` have the methods of candle's, and their layers can be adapted"
)]
pub trait KnowsTypes<'a> {}

/// Neither candle's `LSTM` nor its `GRU` implements this trait.
#[diagnostic::on_unimplemented(
    message = "`{Self}` hides its parameters",
    label = "keeps its tensors private",
    note = "`lora::layers::LSTM` and `lora::layers::GRU` have the methods of candle's and can be adapted and trained",
    note = "under `#[lora(skip)]` the layer stays as it is and passes the gradient, but is neither counted, moved nor trained"
)]
pub trait ShowsParameters<'a> {}

/// `QTensor` does not implement this trait.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is a quantised weight without its layer",
    label = "not a layer",
    note = "`lora::layers::QLinear`, `lora::layers::QEmbedding` and candle's `QMatMul` hold a quantised weight, and can be adapted",
    note = "under `#[lora(skip)]` the weight stays as it is, and no gradient passes it: what comes after it can be trained"
)]
pub trait IsALayer<'a> {}

/// The LoRA type of a type that has none: without a value.
pub struct Hidden<M>(Infallible, PhantomData<fn() -> M>);

impl<M> Clone for Hidden<M> {
    fn clone(&self) -> Self {
        match self.0 {}
    }
}

impl<M> Debug for Hidden<M> {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {}
    }
}

/// So that the model's methods, which call the layer, have no errors of their own.
impl<M> Module for Hidden<M> {
    fn forward(&self, _: &Tensor) -> candle_core::Result<Tensor> {
        match self.0 {}
    }
}

impl<M: LoraModel<Lora = Self>> LoraModule for Hidden<M> {
    type Base = M;

    fn to_base(&self) -> Result<M> {
        match self.0 {}
    }

    fn visit(&self, _: &mut Cursor<'_>) {
        match self.0 {}
    }

    fn visit_mut(&mut self, _: &mut CursorMut<'_>) {
        match self.0 {}
    }
}

macro_rules! hidden {
    ($ty:ty: $bound:ident) => {
        impl LoraModel for $ty
        where
            for<'x> Self: $bound<'x>,
        {
            type Lora = Hidden<Self>;

            fn adapt(&self, cx: &mut Builder<'_>) -> Result<Self::Lora> {
                // No caller fulfils the bound.
                Err(Error::layer(cx.path(), "has no LoRA counterpart"))
            }
        }

        impl LoraLayer for $ty where for<'x> Self: $bound<'x> {}
    };
}

hidden!(Func<'_>: NotAClosure);
hidden!(FuncT<'_>: NotAClosure);
hidden!(Sequential: KnowsTypes);
hidden!(LSTM: ShowsParameters);
hidden!(GRU: ShowsParameters);
hidden!(QTensor: IsALayer);
