//! Images and labels: reading, resizing, splitting, batching.

mod augment;
mod dataset;
mod decode;
mod folder;
mod resize;
mod sheet;

pub use augment::augment;
pub use dataset::{Batch, Dataset};
pub use folder::{Folder, HELD_OUT, read_folder};
pub use sheet::read_sheets;

use anyhow::{Result, bail};

/// An image with values from 0 to 1: one channel after the other, each row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// 1 for grey, 3 for colour.
    pub channels: usize,
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `channels * height * width` values.
    pub values: Vec<f32>,
}

impl Image {
    /// The pixels as bytes, in the same order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let values = self.values.iter();
        values
            .map(|value| (value * 255.0).round().clamp(0.0, 255.0) as u8)
            .collect()
    }

    /// The part of `width` x `height` pixels whose top left corner is at `x`, `y`.
    ///
    /// # Errors
    /// If the part reaches out of the image.
    pub fn crop(&self, x: usize, y: usize, width: usize, height: usize) -> Result<Self> {
        if x + width > self.width || y + height > self.height {
            bail!(
                "a part of {width}x{height} pixels at {x}, {y} is not inside an image of {}x{}",
                self.width,
                self.height
            );
        }
        let mut values = Vec::with_capacity(self.channels * width * height);
        for row in 0..self.channels * height {
            let (channel, row) = (row / height, row % height);
            let start = (channel * self.height + y + row) * self.width + x;
            values.extend_from_slice(&self.values[start..start + width]);
        }
        Ok(Self {
            channels: self.channels,
            width,
            height,
            values,
        })
    }

    /// The image at another size: bilinear, averaging where it shrinks.
    pub fn resize(&self, width: usize, height: usize) -> Self {
        resize::resize(self, width, height)
    }

    /// The middle square at `size` x `size`: the shorter side is scaled to `size`, the longer cut.
    pub fn fit(&self, size: usize) -> Self {
        let side = self.width.min(self.height);
        let (x, y) = ((self.width - side) / 2, (self.height - side) / 2);
        match self.crop(x, y, side, side) {
            Ok(square) => square.resize(size, size),
            // A square inside the image never fails.
            Err(_) => self.resize(size, size),
        }
    }
}
