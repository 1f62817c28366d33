//! Images: read, resized, in folders of classes, changed at random, as batches (feature `images`).
//!
//! A folder holds a subfolder for each class, and that its images: PNG, JPEG or WebP.
//!
//! ```no_run
//! use lora::images::{HELD_OUT, Input, read_folder};
//!
//! let input = Input::read("vit-base-patch16-224")?;  // what the model wants of its images
//! let folder = read_folder("photos", input.size())?;
//! for note in &folder.notes {
//!     println!("{note}");
//! }
//! let (training, held_out) = folder.split(HELD_OUT);
//! let batch = training.batch(&[0, 1, 2])?;
//! let images = input.normalize(&batch.images)?;      // for the model's `forward`
//! # let _ = (held_out, images);
//! # Ok::<(), lora::Error>(())
//! ```

mod augment;
mod dataset;
mod decode;
mod folder;
mod input;
mod resize;

pub use augment::{Augment, augment};
pub use dataset::{Batch, Dataset};
pub use folder::{Folder, HELD_OUT, read_folder, read_folder_with};
pub use input::Input;

use crate::models::convnext::ConvNext;
use crate::{Error, Result};

/// An image with values from 0 to 1: one channel after the other, each row by row.
///
/// ```
/// use lora::images::Image;
///
/// let image = Image { channels: 1, width: 4, height: 2, values: vec![0.0; 8] };
/// let square = image.fit(2);
/// assert_eq!((square.width, square.height, square.values.len()), (2, 2, 4));
/// ```
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
    /// [`Error::Data`] if the part reaches out of the image.
    pub fn crop(&self, x: usize, y: usize, width: usize, height: usize) -> Result<Self> {
        let inside = |start: usize, length: usize, all: usize| {
            start.checked_add(length).is_some_and(|end| end <= all)
        };
        if !inside(x, width, self.width) || !inside(y, height, self.height) {
            return Err(Error::Data(vec![format!(
                "a part of {width}x{height} pixels at {x}, {y} is not inside an image of {}x{}",
                self.width, self.height
            )]));
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

    /// The image with one channel, its brightness, or with three, which are the same for a grey one.
    ///
    /// ```
    /// use lora::images::Image;
    ///
    /// let red = Image { channels: 3, width: 1, height: 1, values: vec![1.0, 0.0, 0.0] };
    /// assert_eq!(red.with_channels(1).values, [0.2126]);
    /// assert_eq!(red.with_channels(1).with_channels(3).values, [0.2126; 3]);
    /// ```
    pub fn with_channels(&self, channels: usize) -> Self {
        let size = self.width * self.height;
        let values = match (self.channels, channels) {
            (3, 1) => {
                let luma = |place: usize| {
                    let parts = ConvNext::LUMA.iter().enumerate();
                    parts
                        .map(|(channel, part)| part * self.values[channel * size + place])
                        .sum()
                };
                (0..size).map(luma).collect()
            }
            (1, 3) => self.values.repeat(3),
            _ => return self.clone(),
        };
        Self {
            channels,
            values,
            ..*self
        }
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
