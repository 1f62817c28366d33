//! What a block of layers does to its rows beside the layers: a norm in front, a factor and a shortcut
//! behind.

use super::CHUNK;
use super::buffer::{buffer, room};
use super::dropout::Dropout;
use super::matrix::Threads;
use super::norm;
use super::simd::{Element, Vector, run};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// What the forward pass of a block leaves for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing: there is no backward pass.
    Nothing,
    /// All but the inner values, which the backward pass computes anew.
    Little,
    /// The inner values too.
    Inner,
}

/// What a block has itself of what it adds to its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortcut {
    /// The block's input.
    Input,
    /// The norm's result.
    Normed,
}

/// A normalisation of rows.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a, T> {
    pub(crate) weight: &'a [T],
    pub(crate) bias: Option<&'a [T]>,
    pub(crate) eps: f64,
    pub(crate) remove_mean: bool,
}

impl<T: Element> Norm<'_, T> {
    /// `stats` gets two numbers for each row.
    pub(crate) fn forward(&self, x: &[T], y: &mut [T], stats: &mut [T], threads: Threads) {
        let (weight, width) = (Some(self.weight), self.weight.len());
        let rows = rows_of_a_task(threads, x.len(), width);
        let parts = x.par_chunks(rows * width);
        let parts = parts.zip(y.par_chunks_mut(rows * width));
        let each = |((x, y), stats): ((&[T], &mut [T]), &mut [T])| {
            let (eps, remove_mean) = (self.eps, self.remove_mean);
            norm::forward_rows(x, y, width, eps, remove_mean, weight, self.bias, stats);
        };
        match threads {
            Threads::One => each(((x, y), stats)),
            Threads::All => parts.zip(stats.par_chunks_mut(2 * rows)).for_each(each),
        }
    }

    /// Computes the result again.
    pub(crate) fn again(&self, x: &[T], y: &mut [T], threads: Threads) {
        let mut stats = buffer(2 * x.len() / self.weight.len().max(1));
        self.forward(x, y, &mut stats, threads);
    }

    pub(crate) fn backward(
        &self,
        x: &[T],
        grad: &[T],
        stats: &[T],
        on_x: &mut [T],
        threads: Threads,
    ) {
        let (weight, width) = (Some(self.weight), self.weight.len());
        let rows = rows_of_a_task(threads, x.len(), width);
        let parts = x
            .par_chunks(rows * width)
            .zip(grad.par_chunks(rows * width));
        let parts = parts.zip(stats.par_chunks(2 * rows));
        let each = |x: &[T], grad: &[T], stats: &[T], on_x: &mut [T]| {
            norm::backward_rows(x, grad, stats, weight, on_x, width, self.remove_mean);
        };
        match threads {
            Threads::One => each(x, grad, stats, on_x),
            Threads::All => parts
                .zip(on_x.par_chunks_mut(rows * width))
                .for_each(|(((x, grad), stats), on_x)| each(x, grad, stats, on_x)),
        }
    }
}

/// The gradients of what a block's layers see and of its input: without a norm they are one.
pub(crate) struct OnInput<'a, T> {
    of_layers: Option<&'a mut [T]>,
    behind: Option<(&'a Norm<'a, T>, &'a mut [T])>,
}

impl<'a, T: Element> OnInput<'a, T> {
    /// `on_x` is the gradient of the input, if it is wanted.
    pub(crate) fn new(
        on_x: Option<&'a mut [T]>,
        norm: Option<&'a Norm<'a, T>>,
        memory: &'a mut Vec<T>,
    ) -> Self {
        match (on_x, norm) {
            (Some(on_x), Some(norm)) => Self {
                of_layers: Some(room(memory, on_x.len())),
                behind: Some((norm, on_x)),
            },
            (on_x, _) => Self {
                of_layers: on_x,
                behind: None,
            },
        }
    }

    /// The gradient of what the layers see, if it is wanted.
    pub(crate) fn of_layers(&mut self) -> Option<&mut [T]> {
        self.of_layers.as_deref_mut()
    }

    /// Writes the gradient of the input, when the layers have written theirs: from the input, the norm's
    /// stats and the gradient of the block's result.
    pub(crate) fn finish(
        self,
        shortcut: Option<Shortcut>,
        x: &[T],
        stats: &[T],
        on_y: &[T],
        threads: Threads,
    ) {
        let Some(on_normed) = self.of_layers else {
            return;
        };
        let Some((norm, on_x)) = self.behind else {
            // The norm's result is the input.
            if shortcut.is_some() {
                add(on_normed, on_y, threads);
            }
            return;
        };
        if shortcut == Some(Shortcut::Normed) {
            add(on_normed, on_y, threads);
        }
        norm.backward(x, on_normed, stats, on_x, threads);
        if shortcut == Some(Shortcut::Input) {
            add(on_x, on_y, threads);
        }
    }
}

/// How many rows a thread handles at once, of so many numbers.
fn rows_of_a_task(threads: Threads, count: usize, width: usize) -> usize {
    match threads {
        Threads::One => count / width.max(1) + 1,
        Threads::All => CHUNK / width.max(1) + 1,
    }
}

/// Some rows of all; none of no values.
pub(crate) fn part<T>(values: &[T], first: usize, rows: usize, width: usize) -> &[T] {
    match values.is_empty() {
        true => values,
        false => &values[first * width..][..rows * width],
    }
}

/// y += more
fn add<T: Element>(y: &mut [T], more: &[T], threads: Threads) {
    finish(y, None, Some(more), CHUNK, threads);
}

/// The gradient of what a block's layers give for the rows from `first` on, from that of the block's result:
/// factors and dropout lie between.
pub(crate) fn behind_layers<'a, T: Element>(
    on_y: &'a [T],
    (gamma, dropout): (Option<&[T]>, Option<&Dropout>),
    (first, width): (usize, usize),
    scaled: &'a mut Vec<T>,
    threads: Threads,
) -> &'a [T] {
    if gamma.is_none() && dropout.is_none() {
        return on_y;
    }
    let scaled = room(scaled, on_y.len());
    scaled.copy_from_slice(on_y);
    finish(scaled, gamma, None, width, threads);
    if let Some(dropout) = dropout {
        dropout.in_place(scaled, first * width);
    }
    scaled
}

/// y = shortcut + gamma·y, row by row.
pub(crate) fn finish<T: Element>(
    y: &mut [T],
    gamma: Option<&[T]>,
    shortcut: Option<&[T]>,
    width: usize,
    threads: Threads,
) {
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

    if width == 0 || (gamma.is_none() && shortcut.is_none()) {
        return;
    }
    let count = rows_of_a_task(threads, y.len(), width) * width;
    let part = |(index, y): (usize, &mut [T])| {
        let shortcut = shortcut.map(|all| &all[index * count..][..y.len()]);
        run(Finish {
            y,
            gamma,
            shortcut,
            width,
        });
    };
    match threads {
        Threads::One => part((0, y)),
        Threads::All => y.par_chunks_mut(count).enumerate().for_each(part),
    }
}
