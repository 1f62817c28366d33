//! Enums of models, and enums without fields.
#![deny(warnings, missing_docs, clippy::all)]
#![allow(dead_code)]

use candle_nn::Linear;
use lora::{LoraModel, LoraModule};

/// Each kind of variant.
#[derive(LoraModel)]
#[non_exhaustive]
pub enum Mixer {
    /// One field.
    One(#[lora(rank)] Linear),
    /// Several.
    Two(Linear, Box<Mixer>),
    /// Named.
    Named {
        /// A list.
        #[lora(rank)]
        experts: Vec<Linear>,
        /// Cloned.
        #[lora(skip)]
        top: u8,
    },
    /// None.
    Unit,
}

/// A plain type: it is its own counterpart.
#[derive(Clone, Copy, Debug, PartialEq, LoraModel)]
pub enum Kind {
    /// With a value.
    First = 3,
    /// And without.
    #[deprecated]
    Second,
}

/// Without variants.
#[derive(Clone, Debug, LoraModel)]
pub enum Never {}

/// Without layers, and generic.
#[derive(Clone, Debug, LoraModel)]
#[lora(plain)]
pub enum Either<A, B> {
    /// This.
    Left(A),
    /// That.
    Right(B),
}

pub fn main() {
    fn own<M: LoraModel<Lora = M> + LoraModule<Base = M>>(_: &M) {}
    own(&Kind::First);
    own(&Either::<u8, [u8; 3]>::Left(1));
    let lora = LoraMixer::Unit;
    assert_eq!(format!("{:?}", lora.clone()), "Unit");
}
