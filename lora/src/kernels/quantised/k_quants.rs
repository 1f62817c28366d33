//! The K types: blocks of 256 values with a scale for each 16 or 32 values, which is quantised too.

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

#[inline(always)]
pub(super) fn q2k(block: &[u8; 84], y: &mut [f32; 256]) {
    let (scales, q) = (&block[..16], &block[16..80]);
    let (d, min) = (half(block, 80), half(block, 82));
    for (part, y) in y.chunks_exact_mut(16).enumerate() {
        // Each 32 bytes hold 128 values, two bits of a byte for each of four rounds.
        let (round, side) = (part / 2, part % 2);
        let q = &q[round / 4 * 32 + side * 16..][..16];
        let shift = round % 4 * 2;
        let scale = d * f32::from(scales[part] & 15);
        let least = min * f32::from(scales[part] >> 4);
        for (y, &q) in y.iter_mut().zip(q) {
            *y = scale * f32::from((q >> shift) & 3) - least;
        }
    }
}

#[inline(always)]
pub(super) fn q3k(block: &[u8; 110], y: &mut [f32; 256]) {
    let (third, q, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    for (part, y) in y.chunks_exact_mut(16).enumerate() {
        let (round, side) = (part / 2, part % 2);
        let q = &q[round / 4 * 32 + side * 16..][..16];
        let third = &third[side * 16..][..16];
        let shift = round % 4 * 2;
        let low = match part {
            0..8 => scales[part] & 15,
            _ => scales[part - 8] >> 4,
        };
        let high = (scales[8 + part % 4] >> (part / 4 * 2)) & 3;
        let scale = d * (f32::from(low | (high << 4)) - 32.0);
        for ((y, &q), &third) in y.iter_mut().zip(q).zip(third) {
            let bit = i32::from((third >> round) & 1);
            *y = scale * (i32::from((q >> shift) & 3) + 4 * bit - 4) as f32;
        }
    }
}

#[inline(always)]
pub(super) fn q4k(block: &[u8; 144], y: &mut [f32; 256]) {
    let (d, min) = (half(block, 0), half(block, 2));
    let (scales, q) = (&block[4..16], &block[16..]);
    for (part, y) in y.chunks_exact_mut(32).enumerate() {
        let q = &q[part / 2 * 32..][..32];
        let (scale, least) = scale_and_min(scales, part);
        let (scale, least) = (d * scale, min * least);
        let shift = part % 2 * 4;
        for (y, &q) in y.iter_mut().zip(q) {
            *y = scale * f32::from((q >> shift) & 15) - least;
        }
    }
}

#[inline(always)]
pub(super) fn q5k(block: &[u8; 176], y: &mut [f32; 256]) {
    let (d, min) = (half(block, 0), half(block, 2));
    let (scales, fifth, q) = (&block[4..16], &block[16..48], &block[48..]);
    for (part, y) in y.chunks_exact_mut(32).enumerate() {
        let q = &q[part / 2 * 32..][..32];
        let (scale, least) = scale_and_min(scales, part);
        let (scale, least) = (d * scale, min * least);
        let shift = part % 2 * 4;
        for ((y, &q), &fifth) in y.iter_mut().zip(q).zip(fifth) {
            let bit = (fifth >> part) & 1;
            *y = scale * f32::from(((q >> shift) & 15) | (bit << 4)) - least;
        }
    }
}

#[inline(always)]
pub(super) fn q6k(block: &[u8; 210], y: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for (part, y) in y.chunks_exact_mut(16).enumerate() {
        // 128 values at a time: four rounds of 32, of which two share a byte's halves.
        let (half, round, side) = (part / 8, part / 2 % 4, part % 2);
        let low = &low[half * 64 + round % 2 * 32 + side * 16..][..16];
        let high = &high[half * 32 + side * 16..][..16];
        let (shift, shift_high) = (round / 2 * 4, round * 2);
        let scale = d * signed(scales[part]);
        for ((y, &low), &high) in y.iter_mut().zip(low).zip(high) {
            let q = ((low >> shift) & 15) | (((high >> shift_high) & 3) << 4);
            *y = scale * (i32::from(q) - 32) as f32;
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
