//! Bilinear resizing, one dimension after the other.

use super::Image;

/// Weights of the source pixels for one target pixel.
struct Tap {
    first: usize,
    weights: Vec<f32>,
}

/// A triangle filter with pixel centres at half integers. It is as wide as a target pixel where the
/// image shrinks, so that no source pixel is skipped. This is Pillow's bilinear filter.
fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    let radius = scale.max(1.0);
    let tap = |index: usize| {
        let centre = (index as f64 + 0.5) * scale;
        let first = (centre - radius + 0.5).floor().max(0.0) as usize;
        let last = ((centre + radius + 0.5).floor() as usize).clamp(first + 1, from);
        let weight = |pixel: usize| {
            let distance = (pixel as f64 + 0.5 - centre).abs() / radius;
            (1.0 - distance).max(0.0)
        };
        let weights: Vec<f64> = (first..last).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let weights = weights.iter().map(|weight| (weight / sum) as f32);
        Tap {
            first,
            weights: weights.collect(),
        }
    };
    (0..to).map(tap).collect()
}

pub(super) fn resize(image: &Image, width: usize, height: usize) -> Image {
    if (image.width, image.height) == (width, height) {
        return image.clone();
    }
    let columns = taps(image.width, width);
    let rows = taps(image.height, height);
    let mut narrow = Vec::with_capacity(image.channels * image.height * width);
    for row in image.values.chunks_exact(image.width) {
        narrow.extend(columns.iter().map(|tap| {
            let pixels = &row[tap.first..tap.first + tap.weights.len()];
            pixels
                .iter()
                .zip(&tap.weights)
                .map(|(p, w)| p * w)
                .sum::<f32>()
        }));
    }
    let mut values = Vec::with_capacity(image.channels * height * width);
    for channel in narrow.chunks_exact(image.height * width) {
        for tap in &rows {
            values.extend((0..width).map(|x| {
                let pixel = |y: usize| channel[(tap.first + y) * width + x];
                let weights = tap.weights.iter().enumerate();
                weights.map(|(y, weight)| pixel(y) * weight).sum::<f32>()
            }));
        }
    }
    Image {
        channels: image.channels,
        width,
        height,
        values,
    }
}
