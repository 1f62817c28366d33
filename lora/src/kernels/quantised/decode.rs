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
use half::bf16;
use pulp::{Simd, WithSimd};

/// Calls a function with the bytes and the values of each block. Each type has a kernel of its own, in
/// which its function is inlined: as an argument it would be compiled for itself, without the
/// instructions that [`run`] chooses.
macro_rules! each {
    ($all:expr, $of:expr, [$bytes:literal => $values:literal] $f:path) => {{
        struct Each<'a> {
            blocks: &'a [[u8; $bytes]],
            values: &'a mut [[f32; $values]],
        }
        impl WithSimd for Each<'_> {
            type Output = ();

            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) {
                for (block, values) in self.blocks.iter().zip(self.values) {
                    $f(block, values);
                }
            }
        }
        let (blocks, values) = ($all.as_chunks().0, $of.as_chunks_mut().0);
        run(Each { blocks, values })
    }};
}

/// Writes the values of whole blocks.
pub(super) fn dequantise(dtype: GgmlDType, bytes: &[u8], values: &mut [f32]) {
    debug_assert_eq!(
        bytes.len() / dtype.type_size() * dtype.block_size(),
        values.len()
    );
    match dtype {
        GgmlDType::F32 => each!(bytes, values, [4 => 1] f32_),
        GgmlDType::F16 => each!(bytes, values, [2 => 1] f16_),
        GgmlDType::BF16 => each!(bytes, values, [2 => 1] bf16_),
        GgmlDType::Q4_0 => each!(bytes, values, [18 => 32] q4_0),
        GgmlDType::Q4_1 => each!(bytes, values, [20 => 32] q4_1),
        GgmlDType::Q5_0 => each!(bytes, values, [22 => 32] q5_0),
        GgmlDType::Q5_1 => each!(bytes, values, [24 => 32] q5_1),
        GgmlDType::Q8_0 => each!(bytes, values, [34 => 32] q8_0),
        GgmlDType::Q8_1 => each!(bytes, values, [36 => 32] q8_1),
        GgmlDType::Q2K => each!(bytes, values, [84 => 256] q2k),
        GgmlDType::Q3K => each!(bytes, values, [110 => 256] q3k),
        GgmlDType::Q4K => each!(bytes, values, [144 => 256] q4k),
        GgmlDType::Q5K => each!(bytes, values, [176 => 256] q5k),
        GgmlDType::Q6K => each!(bytes, values, [210 => 256] q6k),
        GgmlDType::Q8K => each!(bytes, values, [292 => 256] q8k),
    }
}

/// The f16 at this byte.
#[inline(always)]
pub(super) fn half(bytes: &[u8], at: usize) -> f32 {
    from_half(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// The value of an f16, without a branch or a call, which would end the compiler's vectors.
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
fn f32_(number: &[u8; 4], y: &mut [f32; 1]) {
    y[0] = f32::from_le_bytes(*number);
}

#[inline(always)]
fn f16_(number: &[u8; 2], y: &mut [f32; 1]) {
    y[0] = from_half(u16::from_le_bytes(*number));
}

#[inline(always)]
fn bf16_(number: &[u8; 2], y: &mut [f32; 1]) {
    y[0] = bf16::from_le_bytes(*number).to_f32();
}

/// How far each value's four bits are from a byte's end, where 16 bytes hold the first 16 values in their
/// low bits and the others in their high bits.
const HALVES: [i32; 32] = {
    let mut shifts = [0; 32];
    let mut j = 16;
    while j < 32 {
        shifts[j] = 4;
        j += 1;
    }
    shifts
};

/// 16 bytes, and the same again.
#[inline(always)]
fn twice(bytes: &[u8]) -> [u8; 32] {
    let mut all = [0; 32];
    all[..16].copy_from_slice(&bytes[..16]);
    all[16..].copy_from_slice(&bytes[..16]);
    all
}

#[inline(always)]
fn q4_0(block: &[u8; 18], y: &mut [f32; 32]) {
    let d = half(block, 0);
    let q = twice(&block[2..]);
    for j in 0..32 {
        y[j] = (((i32::from(q[j]) >> HALVES[j]) & 15) - 8) as f32 * d;
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let q = twice(&block[4..]);
    for j in 0..32 {
        y[j] = ((i32::from(q[j]) >> HALVES[j]) & 15) as f32 * d + m;
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
fn q8_0(block: &[u8; 34], y: &mut [f32; 32]) {
    let d = half(block, 0);
    for j in 0..32 {
        y[j] = signed(block[2 + j]) * d;
    }
}

#[inline(always)]
fn q8_1(block: &[u8; 36], y: &mut [f32; 32]) {
    let d = half(block, 0);
    for j in 0..32 {
        y[j] = signed(block[4 + j]) * d;
    }
}
