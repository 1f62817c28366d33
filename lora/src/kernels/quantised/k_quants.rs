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

/// The factor of each value, where 16 neighbours share one.
#[inline(always)]
fn spread(factor: impl Fn(usize) -> f32) -> [f32; 256] {
    let mut all = [0.0; 256];
    let parts = all.as_chunks_mut::<16>().0.iter_mut();
    parts
        .enumerate()
        .for_each(|(part, all)| *all = [factor(part); 16]);
    all
}

#[inline(always)]
pub(super) fn q2k(block: &[u8; 84], y: &mut [f32; 256]) {
    let (scales, q) = (&block[..16], &block[16..80]);
    let (d, min) = (half(block, 80), half(block, 82));
    // Each 32 bytes hold 128 values, two bits of a byte for each of four rounds.
    let mut numbers = [0; 256];
    let halves = numbers.as_chunks_mut::<128>().0.iter_mut();
    for (numbers, q) in halves.zip(q.as_chunks::<32>().0) {
        let rounds = numbers.as_chunks_mut::<32>().0;
        for j in 0..32 {
            rounds[0][j] = q[j] & 3;
            rounds[1][j] = (q[j] >> 2) & 3;
            rounds[2][j] = (q[j] >> 4) & 3;
            rounds[3][j] = q[j] >> 6;
        }
    }
    let scale = spread(|part| d * f32::from(scales[part] & 15));
    let least = spread(|part| min * f32::from(scales[part] >> 4));
    for j in 0..256 {
        y[j] = scale[j] * f32::from(numbers[j]) - least[j];
    }
}

#[inline(always)]
pub(super) fn q3k(block: &[u8; 110], y: &mut [f32; 256]) {
    let (third, q, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    for (part, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (round, side) = (part / 2, part % 2);
        let q = &q.as_chunks::<16>().0[round / 4 * 2 + side];
        let third = &third.as_chunks::<16>().0[side];
        let shift = round % 4 * 2;
        let low = match part {
            0..8 => scales[part] & 15,
            _ => scales[part - 8] >> 4,
        };
        let high = (scales[8 + part % 4] >> (part / 4 * 2)) & 3;
        let scale = d * (f32::from(low | (high << 4)) - 32.0);
        for j in 0..16 {
            let (q, bit) = (i32::from(q[j]) >> shift, i32::from(third[j]) >> round);
            y[j] = scale * ((q & 3) + 4 * (bit & 1) - 4) as f32;
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
    // 128 values at a time: four rounds of 32, of which two share a byte's halves.
    let mut numbers = [0; 256];
    let (low, high) = (low.as_chunks::<32>().0, high.as_chunks::<32>().0);
    let halves = numbers.as_chunks_mut::<128>().0.iter_mut();
    for (half, numbers) in halves.enumerate() {
        let (first, second, high) = (&low[half * 2], &low[half * 2 + 1], &high[half]);
        let rounds = numbers.as_chunks_mut::<32>().0;
        for j in 0..32 {
            rounds[0][j] = (first[j] & 15) | ((high[j] & 3) << 4);
            rounds[1][j] = (second[j] & 15) | (((high[j] >> 2) & 3) << 4);
            rounds[2][j] = (first[j] >> 4) | (((high[j] >> 4) & 3) << 4);
            rounds[3][j] = (second[j] >> 4) | ((high[j] >> 6) << 4);
        }
    }
    let scale = spread(|part| d * signed(scales[part]));
    for j in 0..256 {
        y[j] = scale[j] * (i32::from(numbers[j]) - 32) as f32;
    }
}

#[inline(always)]
pub(super) fn q8k(block: &[u8; 292], y: &mut [f32; 256]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (y, &q) in y.iter_mut().zip(&block[4..260]) {
        *y = d * signed(q);
    }
}
