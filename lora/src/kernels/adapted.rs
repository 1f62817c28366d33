//! A linear layer, with a low-rank update or without: y = x·Wᵀ + b + s·drop(x)·Aᵀ·Bᵀ, forward and
//! backward, for blocks of rows.

use super::blocks::{blocks, take};
use super::buffer::buffer;
use super::dropout::Dropout;
use super::few_rows::{FAR_APART, MANY_ROWS};
use super::layout::transpose_block;
use super::low_rank::{add_few, add_outer, add_product, dots};
use super::matrix::{Matrix, Threads, multiply};
use super::quantised::Blocks;
use super::simd::Element;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// The layer as it is computed for one batch of rows.
///
/// The update enters in the cheaper of two ways. With many rows s·B·A is added to a copy of the
/// weight first; with few rows the branch is computed beside the weight's product. With dropout the
/// branch has another input, so it is always computed beside.
pub(crate) struct LinearKernel<'a, T: Element> {
    /// (out, in) with these steps; it includes the update if `merged`.
    weight: Cow<'a, [T]>,
    steps: (usize, usize),
    /// A quantised weight; `weight` is empty then.
    blocks: Option<Blocks<'a>>,
    bias: Option<&'a [T]>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    update: Option<Update<'a, T>>,
    merged: bool,
}

/// Weights of more bytes are not copied, such as the head of a language model.
const LARGEST_COPY: usize = 1 << 26;

/// Up to so many rows, transposing B takes longer than the rows' products with it.
const FEW: usize = 4;

/// Numbers in a row block that one thread handles: fewer, and reading A or B once more for each block
/// costs more than the block.
const PART: usize = 1 << 17;

/// Rows whose gradients of an update one thread adds up, where all threads may take part. It does not
/// depend on their number, so that sums do not either.
const SUMMED_ROWS: usize = 128;

/// The pass that a layer is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    Backward,
}

/// A low-rank update.
#[derive(Clone, Copy)]
pub(crate) struct UpdateKernel<'a, T> {
    /// (rank, in)
    pub(crate) a: &'a [T],
    /// (out, rank)
    pub(crate) b: &'a [T],
    pub(crate) rank: usize,
    pub(crate) scaling: f64,
    pub(crate) dropout: Option<Dropout>,
}

struct Update<'a, T: Element> {
    low_rank: UpdateKernel<'a, T>,
    /// s·Bᵀ, (rank, out); empty where a few rows alone pass forward, which read B as it lies.
    scaled_b: Vec<T>,
}

/// Rows as the forward pass saw them.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a, T> {
    pub(crate) x: &'a [T],
    /// drop(x)·Aᵀ
    pub(crate) t: &'a [T],
    /// The number of the first row in its batch.
    pub(crate) first: usize,
}

/// The gradients of an update, as they add up over blocks of rows.
pub(crate) struct UpdateGrads<T> {
    /// (rank, in)
    pub(crate) a: Vec<T>,
    /// Transposed: (rank, out). [`finish`](Self::finish) applies the factor s.
    b: Vec<T>,
}

impl<T: Element> UpdateGrads<T> {
    fn zeros(rank: usize, inputs: usize, outputs: usize) -> Self {
        Self {
            a: vec![T::ZERO; rank * inputs],
            b: vec![T::ZERO; rank * outputs],
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in [(&mut self.a, &other.a), (&mut self.b, &other.b)] {
            for (sum, &more) in sum.iter_mut().zip(more) {
                *sum += more;
            }
        }
    }

    /// The gradients of A, (rank, in), and of B, (out, rank).
    pub(crate) fn finish(self, rank: usize, scaling: f64) -> (Vec<T>, Vec<T>) {
        (self.a, transpose_of(&self.b, rank, scaling))
    }
}

/// The sum of what parts of the rows gave each layer's update, in the order of the rows, so that it comes
/// out the same each time; `none` of no part.
pub(crate) fn sum_of_parts<T: Element, const LAYERS: usize>(
    parts: Vec<[Option<UpdateGrads<T>>; LAYERS]>,
    none: impl FnOnce() -> [Option<UpdateGrads<T>>; LAYERS],
) -> [Option<UpdateGrads<T>>; LAYERS] {
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_else(none);
    for part in parts {
        for (sum, part) in sum.iter_mut().zip(&part) {
            if let (Some(sum), Some(part)) = (sum, part) {
                sum.add(part);
            }
        }
    }
    sum
}

impl<'a, T: Element> LinearKernel<'a, T> {
    /// `weight` is (out, in) with these steps between rows and columns.
    pub(crate) fn new(
        weight: Matrix<'a, T>,
        bias: Option<&'a [T]>,
        update: Option<UpdateKernel<'a, T>>,
        rows: usize,
        pass: Direction,
    ) -> Self {
        Self::of(weight, bias, (update, false), rows, pass)
    }

    /// As [`new`](Self::new), for a weight that has the update in it.
    pub(crate) fn merged(
        weight: Matrix<'a, T>,
        bias: Option<&'a [T]>,
        update: UpdateKernel<'a, T>,
        rows: usize,
        pass: Direction,
    ) -> Self {
        Self::of(weight, bias, (Some(update), true), rows, pass)
    }

    fn of(
        weight: Matrix<'a, T>,
        bias: Option<&'a [T]>,
        (update, merged): (Option<UpdateKernel<'a, T>>, bool),
        rows: usize,
        pass: Direction,
    ) -> Self {
        let (outputs, inputs) = weight.shape();
        let is_few = pass == Direction::Forward && rows <= FEW;
        let update = update.map(|low_rank| Update {
            scaled_b: match is_few {
                true => Vec::new(),
                false => transpose_of(low_rank.b, outputs, low_rank.scaling),
            },
            low_rank,
        });
        let mut layer = Self {
            weight: Cow::Borrowed(weight.values()),
            steps: weight.steps(),
            blocks: None,
            bias,
            inputs,
            outputs,
            update,
            merged,
        };
        layer.lay_out(rows, pass);
        layer
    }

    /// A layer whose weight is quantised. It computes as any other, on the weight's values.
    pub(crate) fn quantised(
        blocks: Blocks<'a>,
        bias: Option<&'a [T]>,
        update: Option<UpdateKernel<'a, T>>,
        rows: usize,
        pass: Direction,
    ) -> Self {
        let (outputs, inputs) = blocks.shape();
        // Steps of no matrix in memory: such a weight is never copied.
        let none = Matrix::with_steps(&[], (outputs, 0), (0, 0));
        Self {
            blocks: Some(blocks),
            inputs,
            ..Self::new(none, bias, update, rows, pass)
        }
    }

    /// Copies the weight, with the update added or in another memory order, where the products with
    /// so many rows gain more from the copy than it costs.
    fn lay_out(&mut self, rows: usize, pass: Direction) {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let count = inputs * outputs;
        if self.steps != (inputs, 1) || count == 0 || count * size_of::<T>() > LARGEST_COPY {
            return;
        }
        // The branch costs rank·(in + out) for each row. The copy costs rank·in·out once, and a
        // pass over the weight.
        let merged = self.update.as_ref().filter(|update| {
            let worth = rows * (inputs + outputs) > 3 * count && !update.scaled_b.is_empty();
            worth && update.low_rank.dropout.is_none() && !self.merged
        });
        // The forward product reads the weight along its columns. When a column's numbers are far
        // apart, products run at half their speed.
        let transposed = pass == Direction::Forward && inputs >= FAR_APART && rows >= MANY_ROWS;
        if merged.is_none() && !transposed {
            return;
        }
        let (height, width) = match transposed {
            true => (inputs, outputs),
            false => (outputs, inputs),
        };
        // The update as t·b, with one row of t for each row of the copy.
        let update = merged.map(|Update { low_rank, scaled_b }| match transposed {
            true => (transpose_of(low_rank.a, low_rank.rank, 1.0), &scaled_b[..]),
            false => {
                let t = transpose_of(scaled_b, low_rank.rank, 1.0);
                (t, low_rank.a)
            }
        });
        let mut copy = buffer(count);
        // Each part is still in a core's cache when the update is added to it.
        let part = ((1 << 15) / width + 1).next_multiple_of(16);
        let parts = copy.par_chunks_mut(part * width).enumerate();
        parts.for_each(|(index, copy)| {
            let first = index * part;
            match transposed {
                true => transpose_block(&self.weight, copy, first, outputs, inputs),
                false => copy.copy_from_slice(&self.weight[first * width..][..copy.len()]),
            }
            if let Some((t, b)) = &update {
                let rank = t.len() / height;
                let rows = copy.len() / width;
                add_product(copy, &t[first * rank..][..rows * rank], b, width);
            }
        });
        self.merged |= merged.is_some();
        self.weight = Cow::Owned(copy);
        self.steps = match transposed {
            true => (1, outputs),
            false => (inputs, 1),
        };
    }

    pub(crate) fn rank(&self) -> usize {
        self.update
            .as_ref()
            .map_or(0, |update| update.low_rank.rank)
    }

    fn weight(&self) -> Matrix<'_, T> {
        Matrix::with_steps(&self.weight, (self.outputs, self.inputs), self.steps)
    }

    /// y = x·Wᵀ for a forward pass, or x·W for a backward pass; added to y with `add`.
    fn times_weight(&self, y: &mut [T], x: &[T], pass: Direction, add: bool, threads: Threads) {
        if let Some(blocks) = &self.blocks {
            return blocks.multiply(y, x, pass, add, threads);
        }
        let (weight, width) = match pass {
            Direction::Forward => (self.weight().t(), self.inputs),
            Direction::Backward => (self.weight(), self.outputs),
        };
        let rows = y.len() / weight.shape().1.max(1);
        multiply(y, Matrix::new(x, rows, width), weight, T::ONE, add, threads);
    }

    /// y from x. `t` gets drop(x)·Aᵀ, rank numbers for each row, for the backward pass; without a
    /// backward pass it may be empty. `first` is the number of the first row in its batch.
    pub(crate) fn forward(
        &self,
        x: &[T],
        y: &mut [T],
        t: &mut [T],
        first: usize,
        threads: Threads,
    ) {
        let rows = y.len() / self.outputs.max(1);
        if let Some(bias) = self.bias {
            y.chunks_mut(self.outputs.max(1))
                .for_each(|row| row.copy_from_slice(bias));
        }
        self.times_weight(y, x, Direction::Forward, self.bias.is_some(), threads);
        let Some(Update { low_rank, scaled_b }) = &self.update else {
            return;
        };
        // The weight's product has the update in it, and no backward pass wants `t`.
        if self.merged && t.is_empty() {
            return;
        }
        let mut own;
        let t = if t.is_empty() {
            own = vec![T::ZERO; rows * low_rank.rank];
            own.as_mut_slice()
        } else {
            t
        };
        let x = low_rank.dropped(x, self.inputs, first);
        each_rows(threads, t, low_rank.rank, &x, self.inputs, |t, x| {
            dots(x, low_rank.a, t, self.inputs)
        });
        if !self.merged {
            let t = &*t;
            each_rows(
                threads,
                y,
                self.outputs,
                t,
                low_rank.rank,
                |y, t| match scaled_b.is_empty() {
                    true => add_few(y, t, low_rank.b, low_rank.rank, low_rank.scaling),
                    false => add_product(y, t, scaled_b, self.outputs),
                },
            );
        }
    }

    /// y from x for all rows, on all threads; `t` as in [`forward`](Self::forward).
    pub(crate) fn forward_all(&self, x: &[T], y: &mut [T], t: &mut [T]) {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let rows = y.len().checked_div(outputs).unwrap_or(0);
        let rank = t.len().checked_div(rows).unwrap_or(0);
        let (size, threads) = self.blocks(rows);
        let (mut y, mut t) = (y, t);
        let blocks = (0..rows).step_by(size).map(|first| {
            let rows = size.min(rows - first);
            let y = take(&mut y, rows * outputs);
            (first, y, take(&mut t, rows * rank))
        });
        let run = |(first, y, t): (usize, &mut [T], &mut [T])| {
            let x = &x[first * inputs..][..y.len() / outputs * inputs];
            self.forward(x, y, t, first, threads);
        };
        let blocks: Vec<_> = blocks.collect();
        match threads {
            Threads::All => blocks.into_iter().for_each(run),
            Threads::One => blocks.into_par_iter().for_each(run),
        }
    }

    /// The backward pass of all rows, on all threads. `on_x`, if there, gets the gradient of x. The
    /// result holds the gradients of the update, if `on_update`.
    pub(crate) fn backward_all(
        &self,
        grad: &[T],
        x: &[T],
        t: &[T],
        on_x: Option<&mut [T]>,
        on_update: bool,
    ) -> Option<UpdateGrads<T>> {
        let (inputs, outputs, rank) = (self.inputs, self.outputs, self.rank());
        let rows = grad.len().checked_div(outputs).unwrap_or(0);
        let (size, threads) = self.blocks(rows);
        let wanted = on_x.is_some();
        let mut on_x = on_x.unwrap_or_default();
        let blocks = (0..rows).step_by(size).map(|first| {
            let rows = size.min(rows - first);
            let count = if wanted { rows * inputs } else { 0 };
            (first, rows, take(&mut on_x, count))
        });
        let run = |(first, rows, on_x): (usize, usize, &mut [T])| {
            let mut grads = self.no_grads().filter(|_| on_update);
            let seen = Seen {
                x: &x[first * inputs..][..rows * inputs],
                t: &t[first * rank..][..rows * rank],
                first,
            };
            let grad = &grad[first * outputs..][..rows * outputs];
            self.backward(grad, seen, wanted.then_some(on_x), grads.as_mut(), threads);
            grads
        };
        let blocks: Vec<_> = blocks.collect();
        let parts: Vec<Option<UpdateGrads<T>>> = match threads {
            Threads::All => blocks.into_iter().map(run).collect(),
            Threads::One => blocks.into_par_iter().map(run).collect(),
        };
        // Added in the order of the rows, so that sums come out the same each time.
        let mut sum = self.no_grads().filter(|_| on_update)?;
        parts.iter().flatten().for_each(|part| sum.add(part));
        Some(sum)
    }

    fn blocks(&self, rows: usize) -> (usize, Threads) {
        if self.blocks.is_some() {
            // Each block of rows would dequantise the whole weight.
            return (rows.max(1), Threads::All);
        }
        let (inputs, outputs) = (self.inputs, self.outputs);
        let size = size_of::<T>();
        blocks(rows, inputs.max(outputs) * size, inputs * outputs * size)
    }

    /// Empty gradients of the update.
    pub(crate) fn no_grads(&self) -> Option<UpdateGrads<T>> {
        let rank = self.update.as_ref()?.low_rank.rank;
        Some(UpdateGrads::zeros(rank, self.inputs, self.outputs))
    }

    /// Writes the gradient of x to `on_x`, if there, and adds those of the update to `grads`, from
    /// the gradient of y and from the rows as the forward pass saw them.
    fn backward(
        &self,
        grad: &[T],
        seen: Seen<'_, T>,
        on_x: Option<&mut [T]>,
        grads: Option<&mut UpdateGrads<T>>,
        threads: Threads,
    ) {
        let u = self.grad_input(grad, on_x, false, seen.first, threads);
        if let Some(grads) = grads {
            self.grad_update(grad, seen, &u, grads, threads);
        }
    }

    /// Writes the gradient of x to `on_x`, if there, or adds it with `add`. Returns s·grad·B, rank
    /// numbers for each row, for [`grad_update`](Self::grad_update).
    pub(crate) fn grad_input(
        &self,
        grad: &[T],
        mut on_x: Option<&mut [T]>,
        add: bool,
        first: usize,
        threads: Threads,
    ) -> Vec<T> {
        let rows = grad.len() / self.outputs.max(1);
        if let Some(on_x) = on_x.as_deref_mut() {
            self.times_weight(on_x, grad, Direction::Backward, add, threads);
        }
        let Some(Update { low_rank, scaled_b }) = &self.update else {
            return Vec::new();
        };
        let rank = low_rank.rank;
        let mut u = vec![T::ZERO; rows * rank];
        let scaled_b = match scaled_b.is_empty() {
            true => Cow::Owned(transpose_of(low_rank.b, self.outputs, low_rank.scaling)),
            false => Cow::Borrowed(&scaled_b[..]),
        };
        each_rows(threads, &mut u, rank, grad, self.outputs, |u, grad| {
            dots(grad, &scaled_b, u, self.outputs);
        });
        if let Some(on_x) = on_x
            && !self.merged
        {
            low_rank.add_branch(on_x, &u, self.inputs, first, threads);
        }
        u
    }

    /// Adds the gradients of the update to `grads`.
    pub(crate) fn grad_update(
        &self,
        grad: &[T],
        Seen { x, t, first }: Seen<'_, T>,
        u: &[T],
        grads: &mut UpdateGrads<T>,
        threads: Threads,
    ) {
        let Some(Update { low_rank, .. }) = &self.update else {
            return;
        };
        let rank = low_rank.rank;
        let x = low_rank.dropped(x, self.inputs, first);
        let add = |rows: Range<usize>, grads: &mut UpdateGrads<T>| {
            let rows = &rows;
            add_outer(
                &mut grads.a,
                part_of(u, rows, rank),
                part_of(&x, rows, self.inputs),
                self.inputs,
            );
            add_outer(
                &mut grads.b,
                part_of(t, rows, rank),
                part_of(grad, rows, self.outputs),
                self.outputs,
            );
        };
        let rows = u.len().checked_div(rank).unwrap_or(0);
        if threads == Threads::One || rows <= SUMMED_ROWS {
            return add(0..rows, grads);
        }
        let parts = (0..rows.div_ceil(SUMMED_ROWS)).into_par_iter().map(|part| {
            let first = part * SUMMED_ROWS;
            let mut grads = UpdateGrads::zeros(rank, self.inputs, self.outputs);
            add(first..(first + SUMMED_ROWS).min(rows), &mut grads);
            grads
        });
        // Added in the order of the rows, so that sums come out the same each time.
        let parts: Vec<_> = parts.collect();
        parts.iter().for_each(|part| grads.add(part));
    }
}

/// These rows of a matrix.
fn part_of<'a, T>(values: &'a [T], rows: &Range<usize>, width: usize) -> &'a [T] {
    &values[rows.start * width..rows.end * width]
}

/// Calls `f` with blocks of the rows of two matrices, on several threads if it may.
fn each_rows<T: Element>(
    threads: Threads,
    y: &mut [T],
    y_width: usize,
    x: &[T],
    x_width: usize,
    f: impl Fn(&mut [T], &[T]) + Sync,
) {
    let (y_width, x_width) = (y_width.max(1), x_width.max(1));
    let rows = PART / y_width.max(x_width) + 1;
    // Handing a single block to the other threads takes longer than the block, with a few rows.
    if threads == Threads::One || y.len() <= rows * y_width {
        return f(y, x);
    }
    y.par_chunks_mut(rows * y_width)
        .zip(x.par_chunks(rows * x_width))
        .for_each(|(y, x)| f(y, x));
}

/// scale · the transpose of a matrix of so many rows.
fn transpose_of<T: Element>(values: &[T], rows: usize, scale: f64) -> Vec<T> {
    let scale = T::of(scale);
    let columns = values.len().checked_div(rows).unwrap_or(0);
    let mut result = vec![T::ZERO; values.len()];
    if values.is_empty() {
        return result;
    }
    // Blocks of rows, which are written as neighbours.
    for (block, values) in values.chunks(16 * columns).enumerate() {
        let count = values.len() / columns;
        for (column, result) in result.chunks_exact_mut(rows).enumerate() {
            let values = values[column..].iter().step_by(columns);
            for (result, &value) in result[block * 16..][..count].iter_mut().zip(values) {
                *result = value * scale;
            }
        }
    }
    result
}

impl<T: Element> UpdateKernel<'_, T> {
    /// The branch's input: x, or x after dropout.
    fn dropped<'x>(&self, x: &'x [T], width: usize, first: usize) -> Cow<'x, [T]> {
        match self.dropout {
            None => Cow::Borrowed(x),
            Some(dropout) => {
                let mut dropped = buffer(x.len());
                dropout.apply(x, &mut dropped, first * width);
                Cow::Owned(dropped)
            }
        }
    }

    /// Adds to `on_x` the gradient that comes back through A and the dropout.
    fn add_branch(&self, on_x: &mut [T], u: &[T], width: usize, first: usize, threads: Threads) {
        match self.dropout {
            None => each_rows(threads, on_x, width, u, self.rank, |on_x, u| {
                add_product(on_x, u, self.a, width);
            }),
            Some(dropout) => {
                let mut branch = vec![T::ZERO; on_x.len()];
                add_product(&mut branch, u, self.a, width);
                dropout.add(&branch, on_x, first * width);
            }
        }
    }
}
