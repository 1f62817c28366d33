//! Structs with named fields, tuple structs, unit structs.
#![deny(warnings, missing_docs, clippy::all)]
#![allow(dead_code)]

use candle_nn::{Embedding, LayerNorm, Linear};
use lora::LoraModel;

/// Named fields, each mark, each visibility.
#[derive(LoraModel)]
pub struct Named {
    /// Documented, so its counterpart is too.
    #[lora(rank)]
    pub first: Linear,
    #[lora(rank = 4, alpha = 8, dropout = 0.1)]
    pub(crate) second: Linear,
    #[lora(rank, alpha = 2.5)]
    pub(super) third: Embedding,
    #[lora(trainable, name = "head.proj")]
    r#type: Linear,
    norm: LayerNorm,
    #[lora(flatten)]
    inner: Newtype,
    #[lora(skip)]
    shape: (usize, [f32; 3], Vec<(u8, u8)>),
}

/// One unnamed field.
#[derive(LoraModel)]
pub struct Newtype(#[lora(rank)] Linear);

/// Several, and an empty one.
#[derive(LoraModel)]
pub struct Tuple(
    #[lora(rank)] pub Linear,
    pub Newtype,
    #[lora(skip)] u8,
    Unit,
);

/// A linear layer of its own: the names of a LoRA type make no warning.
#[derive(Clone, LoraModel)]
#[lora(linear)]
pub struct Dense {
    weight: candle_core::Tensor,
    bias: Option<candle_core::Tensor>,
}

/// The same with parameters, and other names for the fields.
#[derive(Clone, LoraModel)]
#[lora(linear(weight = w))]
pub(crate) struct Tagged<'a, T: Copy, const N: usize>
where
    T: Send,
{
    w: candle_core::Tensor,
    #[lora(skip)]
    tags: &'a [T; N],
}

/// No fields.
#[derive(LoraModel)]
pub struct Unit;

/// No fields in braces.
#[derive(LoraModel)]
pub struct Braces {}

/// No fields in parentheses.
#[derive(LoraModel)]
pub struct Parens();

pub fn main() {
    fn convertible<M: LoraModel>() {}
    convertible::<Named>();
    convertible::<Tuple>();
    convertible::<Unit>();
    convertible::<Braces>();
    convertible::<Parens>();
    convertible::<Dense>();
    convertible::<Tagged<u8, 3>>();
}
