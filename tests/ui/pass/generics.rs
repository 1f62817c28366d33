//! Type parameters, const parameters, lifetimes, associated types, where clauses.
#![deny(warnings, missing_docs, clippy::all)]
#![allow(dead_code)]

use candle_nn::{Func, LayerNorm, Linear, Module};
use lora::LoraModel;
use std::fmt::Debug;
use std::marker::PhantomData;

/// A family of layers.
pub trait Family {
    /// Its norm.
    type Norm: LoraModel + Module;
}

/// Everything at once.
#[derive(LoraModel)]
pub struct All<'a, F: Family, P, S, const N: usize = 2>
where
    P: Module + 'static,
    S: AsRef<str>,
{
    norm: F::Norm,
    again: Option<<F as Family>::Norm>,
    #[lora(rank)]
    projs: [P; N],
    #[lora(skip)]
    func: Func<'a>,
    #[lora(skip)]
    name: &'a S,
    marker: PhantomData<fn(F)>,
}

/// A parameter with a default, in several places.
#[derive(LoraModel)]
pub struct Block<N = LayerNorm>(N, #[lora(rank)] Linear, Option<Box<N>>);

/// A parameter of another model.
#[derive(LoraModel)]
pub struct Outer<N> {
    blocks: Vec<Block<N>>,
}

/// An enum with parameters.
#[derive(LoraModel)]
pub enum Either<A, B> {
    /// This.
    Left(A),
    /// That.
    Right(B),
}

/// The bounds are given.
#[derive(LoraModel)]
#[lora(bound = "T: LoraModel, T::Lora: Debug")]
pub struct Given<T> {
    value: T,
}

/// A configuration with parameters.
#[derive(LoraModel)]
pub struct Configured<C> {
    #[lora(config)]
    config: C,
    #[lora(rank)]
    fc: Linear,
}

#[lora::forward]
impl<N: Module> Module for Block<N> {
    fn forward(&self, xs: &candle_core::Tensor) -> candle_core::Result<candle_core::Tensor> {
        let Self(norm, fc, rest) = self;
        let xs = xs.apply(norm)?.apply(fc)?;
        rest.iter().try_fold(xs, |xs, norm| norm.forward(&xs))
    }
}

pub fn main() {
    fn module<M: Module>() {}
    module::<lora::Lora<Block>>();
    fn convertible<M: LoraModel>() {}
    convertible::<Outer<LayerNorm>>();
    convertible::<Either<Outer<LayerNorm>, Given<Linear>>>();
    convertible::<Configured<Vec<u8>>>();
}
