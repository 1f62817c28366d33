//! Shift, turn, zoom.

use crate::images::Image;
use rand::{Rng, RngExt};

/// Shifts an image by up to `amount` of its side, turns it by up to 2 x `amount` radians, and zooms by up to
/// 2 x `amount`, in or out. What comes into view is black.
pub(super) fn warp<R: Rng>(image: &Image, amount: f64, rng: &mut R) -> Image {
    let (width, height) = (image.width, image.height);
    let mut within = |amount: f64| (2.0 * rng.random::<f64>() - 1.0) * amount;
    let map = Map {
        angle: within(2.0 * amount),
        zoom: 1.0 + within(2.0 * amount),
        shift: [
            within(amount) * width as f64,
            within(amount) * height as f64,
        ],
    };
    let mut values = Vec::with_capacity(image.values.len());
    for channel in image.values.chunks_exact((height * width).max(1)) {
        map.apply(channel, width, height, &mut values);
    }
    Image { values, ..*image }
}

/// Where a target pixel comes from.
struct Map {
    angle: f64,
    zoom: f64,
    shift: [f64; 2],
}

impl Map {
    fn apply(&self, source: &[f32], width: usize, height: usize, target: &mut Vec<f32>) {
        let (sin, cos) = (self.angle.sin() * self.zoom, self.angle.cos() * self.zoom);
        let centre = [(width as f64 - 1.0) / 2.0, (height as f64 - 1.0) / 2.0];
        let at = |x: isize, y: isize| {
            let inside = (0..width as isize).contains(&x) && (0..height as isize).contains(&y);
            if inside {
                source[y as usize * width + x as usize]
            } else {
                0.0
            }
        };
        for y in 0..height {
            for x in 0..width {
                let (dx, dy) = (x as f64 - centre[0], y as f64 - centre[1]);
                let x = cos * dx - sin * dy + centre[0] + self.shift[0];
                let y = sin * dx + cos * dy + centre[1] + self.shift[1];
                let (left, top) = (x.floor(), y.floor());
                let (fx, fy) = ((x - left) as f32, (y - top) as f32);
                let (left, top) = (left as isize, top as isize);
                let above = at(left, top) * (1.0 - fx) + at(left + 1, top) * fx;
                let below = at(left, top + 1) * (1.0 - fx) + at(left + 1, top + 1) * fx;
                target.push(above * (1.0 - fy) + below * fy);
            }
        }
    }
}
