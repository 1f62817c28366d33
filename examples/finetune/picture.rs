//! The picture of some images with their labels before and after.

use super::font;
use crate::images::{Dataset, Image};
use anyhow::{Context, Result};
use image::{ImageFormat, Rgb, RgbImage};
use std::path::Path;

/// Images a row, and rows.
const COLUMNS: usize = 10;
const ROWS: usize = 4;
/// Side of an image, space between cells, height of a line of text, in pixels.
const SIDE: usize = 72;
const GAP: usize = 10;
const LINE: usize = 20;
/// Pixels a dot of a letter.
const DOT: usize = 2;

const PAPER: Rgb<u8> = Rgb([250, 250, 248]);
const INK: Rgb<u8> = Rgb([60, 60, 60]);
const RIGHT: Rgb<u8> = Rgb([20, 130, 50]);
const WRONG: Rgb<u8> = Rgb([200, 30, 30]);

/// Writes a PNG of up to 40 images, evenly spaced over each class. Under each stands what the model
/// took it for before (if it could) and after, green if right, red if not.
///
/// # Errors
/// If the file cannot be written.
pub fn write_picture(
    path: &Path,
    data: &Dataset,
    before: Option<&[u32]>,
    after: &[u32],
) -> Result<()> {
    let chosen = choose(data);
    let rows = chosen.len().div_ceil(COLUMNS).max(1);
    let width = GAP + COLUMNS * (SIDE + GAP);
    let height = 2 * GAP + LINE + rows * (SIDE + LINE + GAP);
    let mut canvas = Canvas(RgbImage::from_pixel(width as u32, height as u32, PAPER));
    let title = match before {
        Some(_) => "held-out images: taken for, before > after",
        None => "held-out images: taken for, after training",
    };
    canvas.text(GAP, GAP, &[(title, INK)]);

    for (cell, &index) in chosen.iter().enumerate() {
        let x = GAP + (cell % COLUMNS) * (SIDE + GAP);
        let y = 2 * GAP + LINE + (cell / COLUMNS) * (SIDE + LINE + GAP);
        canvas.image(x, y, &data.image(index).fit(SIDE));
        let name = |predictions: &[u32]| {
            let class = predictions.get(index).copied().unwrap_or_default();
            let right = data.labels.get(index) == Some(&class);
            let name = data.classes.get(class as usize).map_or("", String::as_str);
            (name, if right { RIGHT } else { WRONG })
        };
        // As many letters as fit beside each other.
        let fits = SIDE / (DOT * (font::WIDTH + 1));
        let cut = |name: &str, letters: usize| name.chars().take(letters).collect::<String>();
        let (after, after_colour) = name(after);
        match before.map(name) {
            Some((before, before_colour)) => {
                let before = cut(before, (fits - 1) / 2);
                let after = cut(after, (fits - 1) / 2);
                let words = [
                    (&*before, before_colour),
                    (">", INK),
                    (&*after, after_colour),
                ];
                canvas.text(x, y + SIDE + 3, &words);
            }
            None => canvas.text(x, y + SIDE + 3, &[(&*cut(after, fits), after_colour)]),
        }
    }
    let image = canvas.0;
    image
        .save_with_format(path, ImageFormat::Png)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Images evenly spaced over each class: with ten classes each has a column.
fn choose(data: &Dataset) -> Vec<usize> {
    let classes: Vec<Vec<usize>> = (0..data.classes.len())
        .map(|class| {
            let labels = data.labels.iter().enumerate();
            let of_class = labels.filter(|(_, label)| **label as usize == class);
            of_class.map(|(index, _)| index).collect()
        })
        .collect();
    let filled: Vec<_> = classes.iter().filter(|class| !class.is_empty()).collect();
    let total = COLUMNS * ROWS;
    let rounds = total.div_ceil(filled.len().max(1));
    let mut chosen = Vec::new();
    for round in 0..rounds {
        for class in &filled {
            let each = rounds.min(class.len());
            if round < each {
                chosen.push(class[round * class.len() / each]);
            }
        }
    }
    chosen.truncate(total);
    chosen
}

struct Canvas(RgbImage);

impl Canvas {
    fn image(&mut self, x: usize, y: usize, image: &Image) {
        let bytes = image.to_bytes();
        let area = image.width * image.height;
        for place in 0..area {
            let value = |channel: usize| bytes[(channel % image.channels) * area + place];
            let (dx, dy) = (place % image.width, place / image.width);
            self.dot(x + dx, y + dy, Rgb([value(0), value(1), value(2)]));
        }
    }

    fn text(&mut self, mut x: usize, y: usize, words: &[(&str, Rgb<u8>)]) {
        for (word, colour) in words {
            for letter in word.chars() {
                for (row, bits) in font::glyph(letter).into_iter().enumerate() {
                    for column in
                        (0..font::WIDTH).filter(|c| bits >> (font::WIDTH - 1 - c) & 1 == 1)
                    {
                        for place in 0..DOT * DOT {
                            let (dx, dy) = (place % DOT, place / DOT);
                            self.dot(x + column * DOT + dx, y + row * DOT + dy, *colour);
                        }
                    }
                }
                x += DOT * (font::WIDTH + 1);
            }
        }
    }

    fn dot(&mut self, x: usize, y: usize, colour: Rgb<u8>) {
        if let Some(pixel) = self.0.get_pixel_mut_checked(x as u32, y as u32) {
            *pixel = colour;
        }
    }
}
