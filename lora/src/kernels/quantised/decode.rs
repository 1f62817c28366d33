//! The values of blocks, for each of GGML's types.
//!
//! The loops are plain: within [`run`] the compiler makes vector instructions of them. The order of
//! each block's operations is candle's, so that the values are the same to the last bit.

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
    run(Dequantise {
        dtype,
        bytes,
        values,
    });
}

struct Dequantise<'a> {
    dtype: GgmlDType,
    bytes: &'a [u8],
    values: &'a mut [f32],
}

impl WithSimd for Dequantise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self {
            dtype,
            bytes,
            values,
        } = self;
        match dtype {
            GgmlDType::F32 => each(bytes, values, |b, y: &mut [f32; 1]| {
                y[0] = f32::from_le_bytes(*b);
            }),
            GgmlDType::F16 => each(bytes, values, |b, y: &mut [f32; 1]| {
                y[0] = f16::from_le_bytes(*b).to_f32();
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
}

/// Calls `f` with the bytes and the values of each block.
#[inline(always)]
fn each<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    values: &mut [f32],
    f: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let (blocks, values) = (bytes.as_chunks().0, values.as_chunks_mut().0);
    for (block, values) in blocks.iter().zip(values) {
        f(block, values);
    }
}

/// The f16 at this byte.
#[inline(always)]
pub(super) fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// A byte of a signed number.
#[inline(always)]
pub(super) fn signed(byte: u8) -> f32 {
    f32::from(byte as i8)
}

#[inline(always)]
fn q4_0(block: &[u8; 18], y: &mut [f32; 32]) {
    let d = half(block, 0);
    let (low, high) = y.split_at_mut(16);
    for ((&q, low), high) in block[2..].iter().zip(low).zip(high) {
        *low = (i32::from(q & 15) - 8) as f32 * d;
        *high = (i32::from(q >> 4) - 8) as f32 * d;
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let (low, high) = y.split_at_mut(16);
    for ((&q, low), high) in block[4..].iter().zip(low).zip(high) {
        *low = f32::from(q & 15) * d + m;
        *high = f32::from(q >> 4) * d + m;
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
    for (y, &q) in y.iter_mut().zip(numbers) {
        *y = signed(q) * d;
    }
}
