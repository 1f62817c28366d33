//! The K types: blocks of 256 values with a scale for each 16 or 32 values, which is quantised too.

#![allow(clippy::needless_range_loop)] // As in `decode`.

use super::decode::{half, signed};

/// Six-bit scale and minimum of the 32 values of this number.
#[inline(always)]
fn scale_and_min(scales: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = match j {
        0..4 => (scales[j] & 63, scales[j + 4] & 63),
        _ => (
            (scales[j + 4] & 15) | ((scales[j - 4] >> 6) << 4),
            (scales[j + 4] >> 4) | ((scales[j] >> 6) << 4),
        ),
    };
    (f32::from(scale), f32::from(min))
}

/// The factors of 32 values, of which 16 neighbours share one.
#[inline(always)]
fn spread(factors: &[f32; 16], round: usize) -> [f32; 32] {
    let mut all = [factors[round * 2]; 32];
    all[16..].copy_from_slice(&[factors[round * 2 + 1]; 16]);
    all
}

#[inline(always)]
pub(super) fn q2k(block: &[u8; 84], y: &mut [f32; 256]) {
    let (scales, q) = (&block[..16], &block[16..80]);
    let (d, min) = (half(block, 80), half(block, 82));
    let (mut scale, mut least) = ([0.0; 16], [0.0; 16]);
    for part in 0..16 {
        scale[part] = d * f32::from(scales[part] & 15);
        least[part] = min * f32::from(scales[part] >> 4);
    }
    // Each 32 bytes hold 128 values, two bits of a byte for each of four rounds.
    for (round, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let q = &q.as_chunks::<32>().0[round / 4];
        let (scale, least) = (spread(&scale, round), spread(&least, round));
        let shift = round % 4 * 2;
        for j in 0..32 {
            y[j] = scale[j] * f32::from((q[j] >> shift) & 3) - least[j];
        }
    }
}

#[inline(always)]
pub(super) fn q3k(block: &[u8; 110], y: &mut [f32; 256]) {
    let (third, q, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    let mut scale = [0.0; 16];
    for part in 0..16 {
        let low = (scales[part % 8] >> (part / 8 * 4)) & 15;
        let high = (scales[8 + part % 4] >> (part / 4 * 2)) & 3;
        scale[part] = d * (f32::from(low | (high << 4)) - 32.0);
    }
    // As in `q2k`; a byte holds the third bit of each of the eight rounds.
    for (round, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let q = &q.as_chunks::<32>().0[round / 4];
        let scale = spread(&scale, round);
        let shift = round % 4 * 2;
        for j in 0..32 {
            let (q, bit) = (i32::from(q[j]) >> shift, i32::from(third[j]) >> round);
            y[j] = scale[j] * (((q & 3) | ((bit & 1) << 2)) - 4) as f32;
        }
    }
}

#[inline(always)]
pub(super) fn q4k(block: &[u8; 144], y: &mut [f32; 256]) {
    let (d, min) = (half(block, 0), half(block, 2));
    let (scales, q) = (&block[4..16], &block[16..]);
    for (part, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let q = &q.as_chunks::<32>().0[part / 2];
        let (scale, least) = scale_and_min(scales, part);
        let (scale, least) = (d * scale, min * least);
        let shift = part % 2 * 4;
        for j in 0..32 {
            y[j] = scale * f32::from((q[j] >> shift) & 15) - least;
        }
    }
}

#[inline(always)]
pub(super) fn q5k(block: &[u8; 176], y: &mut [f32; 256]) {
    let (d, min) = (half(block, 0), half(block, 2));
    let (scales, fifth, q) = (&block[4..16], &block[16..48], &block[48..]);
    for (part, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let q = &q.as_chunks::<32>().0[part / 2];
        let (scale, least) = scale_and_min(scales, part);
        let (scale, least) = (d * scale, min * least);
        let shift = part % 2 * 4;
        for j in 0..32 {
            let (q, bit) = (i32::from(q[j]) >> shift, i32::from(fifth[j]) >> part);
            y[j] = scale * ((q & 15) | ((bit & 1) << 4)) as f32 - least;
        }
    }
}

#[inline(always)]
pub(super) fn q6k(block: &[u8; 210], y: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    let mut scale = [0.0; 16];
    for part in 0..16 {
        scale[part] = d * signed(scales[part]);
    }
    // Four rounds of 32 values for each half: two rounds share the bytes of the low bits.
    for (round, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = &low.as_chunks::<32>().0[round / 4 * 2 + round % 2];
        let high = &high.as_chunks::<32>().0[round / 4];
        let scale = spread(&scale, round);
        let (shift, shift_high) = (round % 4 / 2 * 4, round % 4 * 2);
        for j in 0..32 {
            let (low, high) = (i32::from(low[j]) >> shift, i32::from(high[j]) >> shift_high);
            y[j] = scale[j] * (((low & 15) | ((high & 3) << 4)) - 32) as f32;
        }
    }
}

#[inline(always)]
pub(super) fn q8k(block: &[u8; 292], y: &mut [f32; 256]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (y, &q) in y.iter_mut().zip(&block[4..260]) {
        *y = d * signed(q);
    }
}
