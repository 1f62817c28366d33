//! Random changes to training images.

mod cut;
mod warp;

use super::{Batch, Image};
use crate::{Error, Result};
use candle_core::{IndexOp, Tensor};
use rand::{Rng, RngExt};

/// Random changes to training images. Each is off until it is asked for; the names are those of timm.
///
/// An image is cut, mirrored, warped, and changed in its colours, in this order.
///
/// ```
/// use lora::images::{Augment, Image};
/// use rand::{SeedableRng, rngs::ChaCha8Rng};
///
/// let image = Image { channels: 1, width: 2, height: 1, values: vec![0.25, 0.75] };
/// let mirrored = Augment::new().hflip(1.0).image(&image, &mut ChaCha8Rng::seed_from_u64(0));
/// assert_eq!(mirrored.values, [0.75, 0.25]);
///
/// let photos = Augment::new().hflip(0.5).scale([0.6, 1.0]).color_jitter(0.4);
/// assert!(photos.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Augment {
    /// The chance that left and right change places.
    pub hflip: f64,
    /// The chance that top and bottom change places.
    pub vflip: f64,
    /// A part of the image takes its place: the least and the largest share of the area that the part has.
    pub scale: Option<[f64; 2]>,
    /// The least and the largest width over height of that part.
    pub ratio: [f64; 2],
    /// Brightness, contrast and saturation are each multiplied by up to this number more or less than 1.
    pub color_jitter: f64,
    /// The image is shifted by up to this share of its side, turned by up to twice as many radians, and zoomed
    /// by up to twice as much, in or out. What comes into view is black.
    pub warp: f64,
}

impl Default for Augment {
    fn default() -> Self {
        Self::new()
    }
}

impl Augment {
    /// No change.
    pub fn new() -> Self {
        Self {
            hflip: 0.0,
            vflip: 0.0,
            scale: None,
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            color_jitter: 0.0,
            warp: 0.0,
        }
    }

    /// Sets [`hflip`](Self::hflip).
    pub fn hflip(mut self, chance: f64) -> Self {
        self.hflip = chance;
        self
    }

    /// Sets [`vflip`](Self::vflip).
    pub fn vflip(mut self, chance: f64) -> Self {
        self.vflip = chance;
        self
    }

    /// Sets [`scale`](Self::scale).
    pub fn scale(mut self, shares: [f64; 2]) -> Self {
        self.scale = Some(shares);
        self
    }

    /// Sets [`ratio`](Self::ratio); from 3 : 4 to 4 : 3 if it is not set.
    pub fn ratio(mut self, ratios: [f64; 2]) -> Self {
        self.ratio = ratios;
        self
    }

    /// Sets [`color_jitter`](Self::color_jitter).
    pub fn color_jitter(mut self, amount: f64) -> Self {
        self.color_jitter = amount;
        self
    }

    /// Sets [`warp`](Self::warp).
    pub fn warp(mut self, amount: f64) -> Self {
        self.warp = amount;
        self
    }

    /// Whether nothing is changed.
    pub fn is_off(&self) -> bool {
        let amounts = [self.hflip, self.vflip, self.color_jitter, self.warp];
        amounts == [0.0; 4] && self.scale.is_none()
    }

    /// The settings that are out of range: by name, with what each must be.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for (name, value, most) in [
            ("hflip", self.hflip, 1.0),
            ("vflip", self.vflip, 1.0),
            ("color_jitter", self.color_jitter, 1.0),
            ("warp", self.warp, 0.5),
        ] {
            if !(0.0..=most).contains(&value) {
                problems.push((name, format!("is {value}: it must be from 0 to {most}")));
            }
        }
        if let Some([least, most]) = self.scale
            && !(0.0 < least && least <= most && most <= 1.0)
        {
            let must =
                "the least share of the area, above 0, and the largest, 1 at most, are expected";
            problems.push(("scale", format!("is {least}, {most}: {must}")));
        }
        let [least, most] = self.ratio;
        if !(0.0 < least && least <= most && most.is_finite()) {
            let must = "the least width over height, above 0, and the largest are expected";
            problems.push(("ratio", format!("is {least}, {most}: {must}")));
        }
        problems
    }

    /// Whether all settings are in range.
    ///
    /// # Errors
    /// [`Error::Data`] names those that are not.
    pub fn check(&self) -> Result<()> {
        let problems = self.problems().into_iter();
        let problems: Vec<String> = problems
            .map(|(name, problem)| format!("`{name}` {problem}"))
            .collect();
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::Data(problems)),
        }
    }

    /// An image of the same size, changed by what `rng` draws. A change that is off draws nothing.
    pub fn image<R: Rng>(&self, image: &Image, rng: &mut R) -> Image {
        let mut image = match self.scale {
            Some(scale) => cut::cut(image, scale, self.ratio, rng),
            None => image.clone(),
        };
        if self.hflip > 0.0 && rng.random::<f64>() < self.hflip {
            image
                .values
                .chunks_mut(image.width.max(1))
                .for_each(<[f32]>::reverse);
        }
        if self.vflip > 0.0 && rng.random::<f64>() < self.vflip {
            let channels = image.values.chunks((image.width * image.height).max(1));
            let rows = channels.flat_map(|channel| channel.chunks(image.width.max(1)).rev());
            image.values = rows.flatten().copied().collect();
        }
        if self.warp > 0.0 {
            image = warp::warp(&image, self.warp, rng);
        }
        if self.color_jitter > 0.0 {
            jitter(&mut image, self.color_jitter, rng);
        }
        image
    }
}

/// Changes brightness, contrast and saturation, each by a factor of its own.
fn jitter<R: Rng>(image: &mut Image, amount: f64, rng: &mut R) {
    let mut factor = || (1.0 + (2.0 * rng.random::<f64>() - 1.0) * amount) as f32;
    let [brightness, contrast, saturation] = [factor(), factor(), factor()];
    let blend = |value: &mut f32, from: f32, factor: f32| {
        *value = (from + (*value - from) * factor).clamp(0.0, 1.0);
    };
    for value in &mut image.values {
        blend(value, 0.0, brightness);
    }
    let grey = image.with_channels(1).values;
    let mean = grey.iter().sum::<f32>() / grey.len().max(1) as f32;
    for value in &mut image.values {
        blend(value, mean, contrast);
    }
    if image.channels == 3 {
        let grey = image.with_channels(1).values;
        for (value, grey) in image.values.iter_mut().zip(grey.iter().cycle()) {
            blend(value, *grey, saturation);
        }
    }
}

/// Shifts each image by up to `amount` of its side, turns it by up to 2 x `amount` radians, and
/// zooms by up to 2 x `amount`, in or out. What comes into view is black. For other changes see [`Augment`].
///
/// # Errors
/// If the tensors cannot be made.
pub fn augment<R: Rng>(batch: &Batch, amount: f64, rng: &mut R) -> Result<Batch> {
    if amount == 0.0 {
        return Ok(batch.clone());
    }
    let (count, channels, height, width) = batch.images.dims4()?;
    let mut warped = Vec::with_capacity(batch.images.elem_count());
    for index in 0..count {
        let image = Image {
            channels,
            width,
            height,
            values: batch.images.i(index)?.flatten_all()?.to_vec1()?,
        };
        warped.extend(warp::warp(&image, amount, rng).values);
    }
    Ok(Batch {
        images: Tensor::from_vec(warped, batch.images.shape(), batch.images.device())?,
        labels: batch.labels.clone(),
    })
}
