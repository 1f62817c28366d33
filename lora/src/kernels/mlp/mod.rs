//! A residual MLP of rows, y = shortcut + gamma·drop(fc2(act(fc1(norm(x))))), in blocks of rows that
//! stay in a core's cache from the first layer to the last. A gated MLP multiplies the activation's
//! result by up(norm(x)). The shortcut may be norm(x).

mod backward;
mod forward;

use super::activation::Function;
use super::adapted::{LinearKernel, UpdateGrads};
use super::blocks::{blocks, each_thread};
use super::dropout::Dropout;
use super::matrix::Threads;
use super::rows::{Norm, Shortcut};
use super::simd::Element;
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
    /// A shortcut from within; any other is an argument.
    pub(crate) shortcut: Option<Shortcut>,
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
