//! Images with their classes, as batches for a model.

use super::Image;
use anyhow::Result;
use candle_core::{DType, Device, Tensor};

/// Images of one size with their classes.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Class of each image.
    pub labels: Vec<u32>,
    channels: usize,
    size: usize,
    pixels: Vec<Vec<u8>>,
}

/// Some images and their classes.
#[derive(Clone, Debug)]
pub struct Batch {
    /// f32 from 0 to 1, (batch, channels, size, size).
    pub images: Tensor,
    /// u32, (batch).
    pub labels: Tensor,
}

impl Dataset {
    /// An empty collection of these classes for square images.
    pub fn new(classes: Vec<String>, channels: usize, size: usize) -> Self {
        Self {
            classes,
            labels: Vec::new(),
            channels,
            size,
            pixels: Vec::new(),
        }
    }

    /// Adds an image, which must have this collection's channels and size.
    pub fn push(&mut self, class: usize, image: &Image) {
        let size = (image.channels, image.width, image.height);
        debug_assert_eq!(size, (self.channels, self.size, self.size));
        self.labels.push(class as u32);
        self.pixels.push(image.to_bytes());
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.pixels.len()
    }

    /// True if there are no images.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// Number of images of a class.
    pub fn count(&self, class: usize) -> usize {
        let labels = self.labels.iter();
        labels.filter(|&&label| label as usize == class).count()
    }

    /// An image by its place.
    pub fn image(&self, index: usize) -> Image {
        let pixels = self.pixels[index].iter();
        Image {
            channels: self.channels,
            width: self.size,
            height: self.size,
            values: pixels.map(|&byte| f32::from(byte) / 255.0).collect(),
        }
    }

    /// Splits off the last images of each class, `fraction` of them but at least one: (the first
    /// ones, the last ones).
    ///
    /// Neighbours are often alike: from one writer, or shots of one scene. Taking every n-th image
    /// instead would test on near copies of what was trained on.
    pub fn split(&self, fraction: f64) -> (Self, Self) {
        let empty = || Self::new(self.classes.clone(), self.channels, self.size);
        let (mut first, mut last) = (empty(), empty());
        for class in 0..self.classes.len() {
            let count = self.count(class);
            let held = ((count as f64 * fraction).round() as usize).max(1);
            let labels = self.labels.iter().enumerate();
            let of_class = labels.filter(|(_, label)| **label as usize == class);
            for (place, (index, &label)) in of_class.enumerate() {
                let part = if place + held < count {
                    &mut first
                } else {
                    &mut last
                };
                part.labels.push(label);
                part.pixels.push(self.pixels[index].clone());
            }
        }
        (first, last)
    }

    /// The same images with their classes numbered as in `classes`, or `None` if that lacks one.
    pub fn renumbered(&self, classes: &[String]) -> Option<Self> {
        let place = |name| classes.iter().position(|class| class == name);
        let places: Vec<usize> = self.classes.iter().map(place).collect::<Option<_>>()?;
        let labels = self
            .labels
            .iter()
            .map(|&label| places[label as usize] as u32);
        Some(Self {
            classes: classes.to_vec(),
            labels: labels.collect(),
            ..self.clone()
        })
    }

    /// The images at these places.
    ///
    /// # Errors
    /// If the tensors cannot be made.
    pub fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let bytes: Vec<u8> = indices
            .iter()
            .flat_map(|&i| &self.pixels[i])
            .copied()
            .collect();
        let shape = (indices.len(), self.channels, self.size, self.size);
        let images = Tensor::from_vec(bytes, shape, &Device::Cpu)?.to_dtype(DType::F32)?;
        let labels: Vec<u32> = indices.iter().map(|&i| self.labels[i]).collect();
        Ok(Batch {
            images: (images / 255.0)?,
            labels: Tensor::new(labels, &Device::Cpu)?,
        })
    }
}
