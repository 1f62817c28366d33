//! Images with their classes, as batches for a model.

use super::{Augment, Image};
use crate::Result;
use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

/// Images of one size with their classes, grey or in colour.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Class of each image.
    pub labels: Vec<u32>,
    channels: usize,
    size: usize,
    /// Of one channel each, or of three.
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
    pub fn new(classes: Vec<String>, size: usize) -> Self {
        Self {
            classes,
            labels: Vec::new(),
            channels: 1,
            size,
            pixels: Vec::new(),
        }
    }

    /// Adds an image of this collection's size.
    pub fn push(&mut self, class: usize, image: &Image) {
        debug_assert_eq!((image.width, image.height), (self.size, self.size));
        self.channels = self.channels.max(image.channels);
        self.labels.push(class as u32);
        self.pixels.push(image.to_bytes());
    }

    /// Channels of its batches: 3 if any image is in colour, else 1.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// With batches of at least so many channels.
    pub fn widened(self, channels: usize) -> Self {
        Self {
            channels: self.channels.max(channels),
            ..self
        }
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
        let values = self.bytes(index).map(|byte| f32::from(byte) / 255.0);
        Image {
            channels: self.channels,
            width: self.size,
            height: self.size,
            values: values.collect(),
        }
    }

    /// An image with all channels: those of a grey one are the same.
    fn bytes(&self, index: usize) -> impl Iterator<Item = u8> {
        let pixels = self.pixels[index].iter().copied();
        let length = self.channels * self.size * self.size;
        pixels.cycle().take(length)
    }

    /// Splits off the last images of each class, `fraction` of them but at least one: (the first
    /// ones, the last ones).
    ///
    /// Neighbours are often alike: from one writer, or shots of one scene. Taking every n-th image
    /// instead would test on near copies of what was trained on.
    pub fn split(&self, fraction: f64) -> (Self, Self) {
        let empty = || Self::new(self.classes.clone(), self.size).widened(self.channels);
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
        let bytes = indices.iter().flat_map(|&index| self.bytes(index));
        let values: Vec<f32> = bytes.map(|byte| f32::from(byte) * (1.0 / 255.0)).collect();
        self.batch_of(indices, values)
    }

    /// The images at these places, changed at random. The changes of an image depend on `seed`, the number of
    /// the epoch and the image's place alone: training that goes on in the middle of an epoch, or that is
    /// shared by several processes, sees the same images.
    ///
    /// ```
    /// use lora::images::{Augment, Dataset, Image};
    ///
    /// let mut data = Dataset::new(vec!["only".into()], 2);
    /// let image = Image { channels: 1, width: 2, height: 2, values: vec![0.0, 0.2, 0.4, 0.6] };
    /// (0..8).for_each(|_| data.push(0, &image));
    /// let augment = Augment::new().hflip(0.5).vflip(0.5);
    /// let of = |indices: &[usize], epoch| {
    ///     data.augmented(indices, &augment, 1, epoch)?.images.flatten_all()?.to_vec1::<f32>()
    ///         .map_err(lora::Error::from)
    /// };
    /// assert_eq!(of(&[3, 5], 2)?, [of(&[3], 2)?, of(&[5], 2)?].concat());
    /// assert_ne!(of(&[0, 1, 2, 3, 4], 0)?, of(&[0, 1, 2, 3, 4], 1)?);
    /// # Ok::<(), lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// If settings are out of range, or the tensors cannot be made.
    pub fn augmented(
        &self,
        indices: &[usize],
        augment: &Augment,
        seed: u64,
        epoch: u64,
    ) -> Result<Batch> {
        if augment.is_off() {
            return self.batch(indices);
        }
        augment.check()?;
        let mut values = Vec::with_capacity(indices.len() * self.channels * self.size * self.size);
        for &index in indices {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            // The streams from 0 on are those of the data's order.
            rng.set_stream(!(epoch << 32 | index as u64));
            values.extend(augment.image(&self.image(index), &mut rng).values);
        }
        self.batch_of(indices, values)
    }

    fn batch_of(&self, indices: &[usize], values: Vec<f32>) -> Result<Batch> {
        let shape = (indices.len(), self.channels, self.size, self.size);
        let labels: Vec<u32> = indices.iter().map(|&i| self.labels[i]).collect();
        Ok(Batch {
            images: Tensor::from_vec(values, shape, &Device::Cpu)?,
            labels: Tensor::new(labels, &Device::Cpu)?,
        })
    }
}
