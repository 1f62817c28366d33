//! A part of an image in the place of all of it.

use crate::images::Image;
use rand::{Rng, RngExt};

/// How often a part is drawn that may be too wide or too high.
const ATTEMPTS: usize = 10;

/// A part of an image, at the image's size: its share of the area is between those of `scale`, its width over
/// its height between those of `ratio`. Where no such part fits, the largest of such a shape from the middle.
pub(super) fn cut<R: Rng>(image: &Image, scale: [f64; 2], ratio: [f64; 2], rng: &mut R) -> Image {
    let (width, height) = (image.width, image.height);
    let mut between = |[low, high]: [f64; 2]| low + (high - low) * rng.random::<f64>();
    for _ in 0..ATTEMPTS {
        let area = between(scale) * (width * height) as f64;
        let ratio = between(ratio.map(f64::ln)).exp();
        let [x, y] = [between([0.0, 1.0]), between([0.0, 1.0])];
        let [w, h] = [area * ratio, area / ratio].map(|square| square.sqrt().round() as usize);
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let place = |at: f64, free: usize| ((at * (free + 1) as f64) as usize).min(free);
            return part(image, place(x, width - w), place(y, height - h), w, h);
        }
    }
    let own = width as f64 / height.max(1) as f64;
    let (w, h) = match own {
        own if own < ratio[0] => (width, (width as f64 / ratio[0]).round() as usize),
        own if own > ratio[1] => ((height as f64 * ratio[1]).round() as usize, height),
        _ => (width, height),
    };
    let (w, h) = (w.clamp(1, width.max(1)), h.clamp(1, height.max(1)));
    part(image, (width - w) / 2, (height - h) / 2, w, h)
}

fn part(image: &Image, x: usize, y: usize, w: usize, h: usize) -> Image {
    match image.crop(x, y, w, h) {
        Ok(part) => part.resize(image.width, image.height),
        // A part inside the image never fails.
        Err(_) => image.clone(),
    }
}
