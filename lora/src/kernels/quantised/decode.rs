//! The values of blocks, for each of GGML's types.
//!
//! Within [`run`] the compiler makes vector instructions of plain loops. The order of
//! each block's operations is candle's, so that the values are the same to the last bit.

// The loops over the values of a block count: the compiler makes vectors of these, and not of zipped
// iterators over bytes.
#![allow(clippy::needless_range_loop)]

use super::k_quants::{q2k, q3k, q4k, q5k, q6k, q8k};
use crate::kernels::simd::run;
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};
use pulp::{Simd, WithSimd};

/// Writes the values of whole blocks.
pub(super) fn dequantise(dtype: GgmlDType, bytes: &[u8], values: &mut [f32]) {
    debug_assert_eq!(
        bytes.len() / dtype.type_size() * dtype.block_size(),
        values.len()
    );
    match dtype {
        GgmlDType::F32 => each(bytes, values, |b, y: &mut [f32; 1]| {
            y[0] = f32::from_le_bytes(*b);
        }),
        GgmlDType::F16 => each(bytes, values, |b, y: &mut [f32; 1]| {
            y[0] = from_half(u16::from_le_bytes(*b));
        }),
        GgmlDType::BF16 => each(bytes, values, |b, y: &mut [f32; 1]| {
            y[0] = bf16::from_le_bytes(*b).to_f32();
        }),
        GgmlDType::Q4_0 => each(bytes, values, q4_0),
        GgmlDType::Q4_1 => each(bytes, values, q4_1),
        GgmlDType::Q5_0 => each(bytes, values, q5_0),
        GgmlDType::Q5_1 => each(bytes, values, q5_1),
        GgmlDType::Q8_0 => each(bytes, values, |b: &[u8; 34], y| q8(half(b, 0), &b[2..], y)),
        GgmlDType::Q8_1 => each(bytes, values, |b: &[u8; 36], y| q8(half(b, 0), &b[4..], y)),
        GgmlDType::Q2K => each(bytes, values, q2k),
        GgmlDType::Q3K => each(bytes, values, q3k),
        GgmlDType::Q4K => each(bytes, values, q4k),
        GgmlDType::Q5K => each(bytes, values, q5k),
        GgmlDType::Q6K => each(bytes, values, q6k),
        GgmlDType::Q8K => each(bytes, values, q8k),
    }
}

/// Calls `f` with the bytes and the values of each block.
fn each<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    values: &mut [f32],
    f: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let (blocks, values) = (bytes.as_chunks().0, values.as_chunks_mut().0);
    run(Each { blocks, values, f });
}

/// A kernel for each type: in one for all of them the compiler would give up on some.
struct Each<'a, const BYTES: usize, const VALUES: usize, F> {
    blocks: &'a [[u8; BYTES]],
    values: &'a mut [[f32; VALUES]],
    f: F,
}

impl<const BYTES: usize, const VALUES: usize, F> WithSimd for Each<'_, BYTES, VALUES, F>
where
    F: Fn(&[u8; BYTES], &mut [f32; VALUES]),
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (block, values) in self.blocks.iter().zip(self.values) {
            (self.f)(block, values);
        }
    }
}

/// The f16 at this byte.
#[inline(always)]
pub(super) fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// As [`half`], without a branch, for a loop over many.
#[inline(always)]
fn from_half(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = (bits & 0x7fff) << 13;
    // The exponents of f16 and f32 count from points that lie 112 apart.
    let number = f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23);
    let value = match bits & 0x7c00 {
        0x7c00 => magnitude | 0x7f80_0000, // infinite, or NaN
        _ => number.to_bits(),
    };
    f32::from_bits(value | ((bits & 0x8000) << 16))
}

/// A byte of a signed number.
#[inline(always)]
pub(super) fn signed(byte: u8) -> f32 {
    i32::from(byte as i8) as f32
}

#[inline(always)]
fn q4_0(block: &[u8; 18], y: &mut [f32; 32]) {
    let d = half(block, 0);
    let (low, high) = y.split_at_mut(16);
    for j in 0..16 {
        let q = i32::from(block[2 + j]);
        low[j] = ((q & 15) - 8) as f32 * d;
        high[j] = ((q >> 4) - 8) as f32 * d;
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let (low, high) = y.split_at_mut(16);
    for j in 0..16 {
        let q = i32::from(block[4 + j]);
        low[j] = (q & 15) as f32 * d + m;
        high[j] = (q >> 4) as f32 * d + m;
    }
}

/// The fifth bits of the two values of byte `j`.
#[inline(always)]
fn fifth_bits(bits: u32, j: usize) -> (i32, i32) {
    let bit = |at: usize| ((bits >> at) & 1) as i32 * 16;
    (bit(j), bit(j + 16))
}

#[inline(always)]
fn q5_0(block: &[u8; 22], y: &mut [f32; 32]) {
    let d = half(block, 0);
    let bits = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let (low, high) = y.split_at_mut(16);
    for j in 0..16 {
        let q = i32::from(block[6 + j]);
        let (first, second) = fifth_bits(bits, j);
        low[j] = (((q & 15) | first) - 16) as f32 * d;
        high[j] = (((q >> 4) | second) - 16) as f32 * d;
    }
}

#[inline(always)]
fn q5_1(block: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let bits = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    let (low, high) = y.split_at_mut(16);
    for j in 0..16 {
        let q = i32::from(block[8 + j]);
        let (first, second) = fifth_bits(bits, j);
        low[j] = ((q & 15) | first) as f32 * d + m;
        high[j] = ((q >> 4) | second) as f32 * d + m;
    }
}

#[inline(always)]
fn q8(d: f32, numbers: &[u8], y: &mut [f32; 32]) {
    for j in 0..32 {
        y[j] = signed(numbers[j]) * d;
    }
}
