//! A residual MLP of rows, y = shortcut + gamma·drop(fc2(act(fc1(norm(x))))), in blocks of rows that
//! stay in a core's cache from the first layer to the last. A gated MLP multiplies the activation's
//! result by up(norm(x)).

mod backward;
mod forward;

use super::activation::Function;
use super::adapted::{LinearKernel, UpdateGrads};
use super::blocks::{blocks, each_thread};
use super::buffer::buffer;
use super::dropout::Dropout;
use super::matrix::Threads;
use super::norm;
use super::simd::{Element, Vector, run};
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;

/// The parts of the block. Rows of x are `fc1.inputs` wide, those of the shortcut and the result
/// `fc2.outputs`.
pub(crate) struct Mlp<'a, T: Element, F> {
    pub(crate) norm: Option<Norm<'a, T>>,
    pub(crate) fc1: LinearKernel<'a, T>,
    pub(crate) act: PhantomData<F>,
    /// What the activation's result is multiplied by, as wide as `fc1`.
    pub(crate) up: Option<LinearKernel<'a, T>>,
    pub(crate) fc2: LinearKernel<'a, T>,
    pub(crate) dropout: Option<Dropout>,
    pub(crate) gamma: Option<&'a [T]>,
}

/// A normalisation of rows.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a, T> {
    pub(crate) weight: &'a [T],
    pub(crate) bias: Option<&'a [T]>,
    pub(crate) eps: f64,
    pub(crate) remove_mean: bool,
}

/// What the forward pass leaves for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing: there is no backward pass.
    Nothing,
    /// All but the hidden values, which the backward pass computes anew.
    Little,
    /// The hidden values before the activation too.
    Hidden,
}

/// The kept values of all rows.
pub(crate) struct Kept<T> {
    /// Mean and 1 / standard deviation of each row; empty without a norm.
    stats: Vec<T>,
    /// The results of fc1 and of up; empty where they are computed anew.
    hidden: Vec<T>,
    up: Vec<T>,
    /// The inputs of each layer's B: of fc1, up and fc2.
    t: [Vec<T>; 3],
}

/// The gradients of the updates of fc1, up and fc2.
pub(crate) type Grads<T> = [Option<UpdateGrads<T>>; 3];

impl<T: Element, F: Function> Mlp<'_, T, F> {
    fn blocks(&self, rows: usize) -> (usize, Threads) {
        let (width, hidden) = (self.fc1.inputs, self.fc1.outputs);
        let layers = 2 + usize::from(self.up.is_some());
        let size = size_of::<T>();
        let weights = layers * width * hidden * size;
        each_thread(rows, weights).unwrap_or_else(|| blocks(rows, hidden * size, weights))
    }

    /// The rank of each layer's update: of fc1, up and fc2.
    fn ranks(&self) -> [usize; 3] {
        let up = self.up.as_ref().map_or(0, LinearKernel::rank);
        [self.fc1.rank(), up, self.fc2.rank()]
    }

    fn no_grads(&self) -> Grads<T> {
        let up = self.up.as_ref();
        [
            self.fc1.no_grads(),
            up.and_then(LinearKernel::no_grads),
            self.fc2.no_grads(),
        ]
    }
}

/// Some rows of all.
fn part<T>(values: &[T], first: usize, rows: usize, width: usize) -> &[T] {
    match values.is_empty() {
        true => values,
        false => &values[first * width..][..rows * width],
    }
}

impl<T: Element> Norm<'_, T> {
    fn forward(&self, x: &[T], y: &mut [T], stats: &mut [T]) {
        let (weight, bias) = (Some(self.weight), self.bias);
        let width = self.weight.len();
        norm::forward_rows(x, y, width, self.eps, self.remove_mean, weight, bias, stats);
    }

    /// Computes the result again.
    fn again(&self, x: &[T], y: &mut [T]) {
        let mut stats = buffer(2 * x.len() / self.weight.len().max(1));
        self.forward(x, y, &mut stats);
    }

    fn backward(&self, x: &[T], grad: &[T], stats: &[T], on_x: &mut [T]) {
        let width = self.weight.len();
        let weight = Some(self.weight);
        norm::backward_rows(x, grad, stats, weight, on_x, width, self.remove_mean);
    }
}

/// y = shortcut + gamma·y, row by row.
fn finish<T: Element>(y: &mut [T], gamma: Option<&[T]>, shortcut: Option<&[T]>, width: usize) {
    struct Finish<'a, T> {
        y: &'a mut [T],
        gamma: Option<&'a [T]>,
        shortcut: Option<&'a [T]>,
        width: usize,
    }

    impl<T: Element> WithSimd for Finish<'_, T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let lanes = T::lanes::<S>();
            let load = |values: &[T]| Vector::<T, S>::load(simd, values);
            for (row, y) in self.y.chunks_mut(self.width).enumerate() {
                let shortcut = self.shortcut.map(|all| &all[row * self.width..][..y.len()]);
                for (index, y) in y.chunks_mut(lanes).enumerate() {
                    let place = index * lanes..index * lanes + y.len();
                    let mut value = load(y);
                    if let Some(gamma) = self.gamma {
                        value = value * load(&gamma[place.clone()]);
                    }
                    if let Some(shortcut) = shortcut {
                        value = value + load(&shortcut[place]);
                    }
                    value.store(y);
                }
            }
        }
    }

    if width > 0 && (gamma.is_some() || shortcut.is_some()) {
        run(Finish {
            y,
            gamma,
            shortcut,
            width,
        });
    }
}
