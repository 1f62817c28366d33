//! Weights in GGML's blocks: a few numbers and a scale for each block of 32 or 256 values.
//!
//! No product here holds the weight in full precision. Each thread dequantises a panel of the weight
//! that fits into the core's own cache, multiplies it there, and goes on to the next panel.

mod decode;
mod k_quants;
#[cfg(test)]
mod tests;

use super::adapted::Direction;
use super::buffer::{buffer, room};
use super::few_rows;
use super::matrix::{Matrix, Threads, Tile, multiply_into, tiles};
use super::simd::Element;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Result, bail};
use pulp::bytemuck;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// The types whose blocks a layer can hold: all of GGML's that candle has.
///
/// ```
/// use candle_core::quantized::GgmlDType;
///
/// assert_eq!(lora::layers::GGML_TYPES.len(), 15);
/// assert!(lora::layers::GGML_TYPES.contains(&GgmlDType::Q4K));
/// ```
pub const GGML_TYPES: [GgmlDType; 15] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q8_1,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
    GgmlDType::Q8K,
];

/// Columns of a result that one panel of the weight gives.
const WIDTH: usize = 256;

/// Numbers that one panel adds up for each of those columns. So a panel takes about 512 KB in f32.
const DEPTH: usize = 640;

/// The least columns of a panel, as products of fewer are slow.
const LEAST_WIDTH: usize = 64;

/// Rows that are worth dequantising a panel for on one more thread.
const ROWS: usize = 32;

/// Dequantising a panel takes as long as the product of so many rows with it.
const UNPACKING: usize = 16;

/// Up to so many rows, a product with rows of the weight is faster than one with panels.
const FEW: usize = 16;

/// Numbers that fit into a core's first cache beside the rows that they are multiplied with.
const FIRST_CACHE: usize = 1 << 13;

/// Numbers between the rows of a panel. Rows at a power of two from each other would share the same
/// few lines of the cache.
const GAP: usize = 16;

/// A matrix (out, in) in blocks, each of which holds neighbours of one row.
#[derive(Clone, Debug)]
pub(crate) struct Blocks<'a> {
    dtype: GgmlDType,
    bytes: Cow<'a, [u8]>,
    outputs: usize,
    inputs: usize,
}

impl<'a> Blocks<'a> {
    /// # Errors
    /// If the tensor is not on the CPU, not a matrix, or has another size than its type and shape say.
    pub(crate) fn of(tensor: &'a QTensor) -> Result<Self> {
        let (outputs, inputs) = tensor.shape().dims2()?;
        if !tensor.device().is_cpu() {
            bail!("a kernel got {tensor:?} on {:?}", tensor.device());
        }
        Self::new(tensor.dtype(), tensor.data()?, outputs, inputs)
    }

    fn new(dtype: GgmlDType, bytes: Cow<'a, [u8]>, outputs: usize, inputs: usize) -> Result<Self> {
        let row = inputs / dtype.block_size() * dtype.type_size();
        if !inputs.is_multiple_of(dtype.block_size()) || bytes.len() != outputs * row {
            bail!(
                "{} bytes are no {dtype:?} of shape [{outputs}, {inputs}]",
                bytes.len()
            );
        }
        Ok(Self {
            dtype,
            bytes,
            outputs,
            inputs,
        })
    }

    /// Outputs and inputs.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    /// The values of these rows.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Vec<f32> {
        let mut values = buffer(rows.len() * self.inputs);
        let row = self.inputs / self.dtype.block_size() * self.dtype.type_size();
        decode::dequantise(
            self.dtype,
            &self.bytes[rows.start * row..rows.end * row],
            &mut values,
        );
        values
    }

    /// y = x·Wᵀ in the forward direction, where x is (rows, in), and y = x·W in the backward
    /// direction, where x is (rows, out). With `add` the product is added to y.
    pub(crate) fn multiply<T: Element>(
        &self,
        y: &mut [T],
        x: &[T],
        pass: Direction,
        add: bool,
        threads: Threads,
    ) {
        let (width, depth) = match pass {
            Direction::Forward => (self.outputs, self.inputs),
            Direction::Backward => (self.inputs, self.outputs),
        };
        let rows = y.len().checked_div(width).unwrap_or(0);
        if rows * depth == 0 {
            return if !add {
                y.fill(T::ZERO)
            };
        }
        if pass == Direction::Forward && rows <= FEW {
            return self.multiply_few(y, x, rows, add, threads);
        }
        let threads = match threads {
            Threads::All => rayon::current_num_threads(),
            Threads::One => 1,
        };
        let block = self.dtype.block_size();
        // The inputs of a panel are whole blocks.
        let (across, along) = match pass {
            Direction::Forward => (16, block),
            Direction::Backward => (block.max(16), 1),
        };
        let size = tile_size((rows, width), across, threads);
        let depth = depth
            .div_ceil(depth.div_ceil(DEPTH))
            .next_multiple_of(along);
        let product = PanelProduct {
            weight: self,
            x,
            pass,
            add,
            depth,
        };
        let tiles = tiles(y, width, size);
        match threads {
            1 => {
                let mut room = Vec::new();
                tiles
                    .into_iter()
                    .for_each(|tile| product.fill(tile, &mut room));
            }
            _ => tiles
                .into_par_iter()
                .for_each_init(Vec::new, |room, tile| product.fill(tile, room)),
        }
    }

    /// y = x·Wᵀ for a few rows: each row of W is dequantised into the first cache, and read there.
    fn multiply_few<T: Element>(
        &self,
        y: &mut [T],
        x: &[T],
        rows: usize,
        add: bool,
        threads: Threads,
    ) {
        let inputs = self.inputs;
        let together = (FIRST_CACHE / inputs).clamp(1, 4);
        let dots_of = |outputs: Range<usize>, t: &mut [T]| {
            let mut values = buffer(together * inputs);
            for (place, t) in t.chunks_mut(together * rows).enumerate() {
                let first = outputs.start + place * together;
                let outputs = first..first + t.len() / rows;
                let values = &mut values[..outputs.len() * inputs];
                self.panel(outputs, 0..inputs, values, inputs);
                few_rows::dots(values, x, t, inputs);
            }
        };
        few_rows::product_of(y, (rows, inputs), dots_of, add, threads);
    }

    /// The values of a part of the weight, with so many numbers from row to row.
    fn panel<T: Element>(
        &self,
        outputs: Range<usize>,
        inputs: Range<usize>,
        values: &mut [T],
        step: usize,
    ) {
        let (block, size) = (self.dtype.block_size(), self.dtype.type_size());
        let row = self.inputs / block * size;
        let (start, end) = (inputs.start / block * size, inputs.end / block * size);
        let width = inputs.len();
        let mut single = [0f32; WIDTH];
        for (output, values) in outputs.zip(values.chunks_mut(step)) {
            let bytes = &self.bytes[output * row..][start..end];
            let values = &mut values[..width];
            if size_of::<T>() == size_of::<f32>() {
                decode::dequantise(self.dtype, bytes, bytemuck::cast_slice_mut(values));
                continue;
            }
            let pieces = bytes.chunks(WIDTH / block * size);
            for (values, bytes) in values.chunks_mut(WIDTH).zip(pieces) {
                let single = &mut single[..values.len()];
                decode::dequantise(self.dtype, bytes, single);
                for (value, &single) in values.iter_mut().zip(&*single) {
                    *value = T::of(f64::from(single));
                }
            }
        }
    }
}

/// Rows and columns of the parts of a result, (rows, width), that the threads compute: columns in
/// multiples of `across`. No thread is to wait long for another, and few are to dequantise the same panel.
fn tile_size((rows, width): (usize, usize), across: usize, threads: usize) -> (usize, usize) {
    let least = across.max(LEAST_WIDTH.next_multiple_of(across));
    let most = least.max((WIDTH + WIDTH / 4) / across * across);
    let mut best = (usize::MAX, (rows, width));
    for parts in 1..=threads.min(rows.div_ceil(ROWS)) {
        let height = rows.div_ceil(parts);
        for panel in (least / across..=most / across)
            .rev()
            .map(|count| count * across)
        {
            let tiles = width.div_ceil(panel) * rows.div_ceil(height);
            let time = tiles.div_ceil(threads) * panel.min(width) * (height + UNPACKING);
            if time < best.0 {
                best = (time, (height, panel));
            }
        }
    }
    best.1
}

/// A product with a weight in blocks, panel by panel.
struct PanelProduct<'a, T> {
    weight: &'a Blocks<'a>,
    x: &'a [T],
    pass: Direction,
    add: bool,
    /// So many numbers are added up at a time.
    depth: usize,
}

impl<T: Element> PanelProduct<'_, T> {
    /// Computes a part of the result. The panels of the weight lie in `memory`, one after the other.
    fn fill(&self, mut tile: Tile<'_, T>, memory: &mut Vec<T>) {
        let (outputs, inputs) = self.weight.shape();
        let width = match self.pass {
            Direction::Forward => inputs,
            Direction::Backward => outputs,
        };
        let (rows, columns) = (tile.rows(), tile.columns());
        for first in (0..width).step_by(self.depth) {
            let summed = first..(first + self.depth).min(width);
            let x = Matrix::with_steps(
                &self.x[rows.start * width + summed.start..],
                (rows.len(), summed.len()),
                (width, 1),
            );
            let (outputs, inputs) = match self.pass {
                Direction::Forward => (columns.clone(), summed),
                Direction::Backward => (summed, columns.clone()),
            };
            let shape = (outputs.len(), inputs.len());
            let step = shape.1 + GAP;
            let values = room(memory, shape.0 * step);
            self.weight.panel(outputs, inputs, values, step);
            let panel = Matrix::with_steps(values, shape, (step, 1));
            let panel = match self.pass {
                Direction::Forward => panel.t(),
                Direction::Backward => panel,
            };
            let add = self.add || first > 0;
            multiply_into(&mut tile, x, panel, T::ONE, add, Threads::One);
        }
    }
}
