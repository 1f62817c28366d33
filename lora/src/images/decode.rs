//! Reading an image file: PNG, JPEG or WebP.

use super::Image;
use crate::{Error, Result};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, Rgba};
use std::io::Cursor;
use std::path::Path;

/// Endings of the files that are read.
const ENDINGS: [&str; 5] = ["png", "jpg", "jpeg", "jfif", "webp"];

/// True for a file that is read, by its name.
pub(super) fn has_known_ending(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    let mut known = ENDINGS.iter();
    known.any(|known| ending.eq_ignore_ascii_case(known))
}

/// The content of an image file.
pub(super) struct Decoded {
    pub(super) image: Image,
    /// Parts of it were transparent and are white now.
    pub(super) transparent: bool,
}

/// Reads an image the way up that its camera notes, or says why it cannot.
pub(super) fn decode(path: &Path) -> Result<Decoded, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    decode_bytes(&bytes).map_err(|error| error.to_string())
}

fn decode_bytes(bytes: &[u8]) -> Result<Decoded, Box<dyn std::error::Error>> {
    // By its content: a name may lie.
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let format = reader.format();
    let mut decoder = reader.into_decoder()?;
    let orientation = decoder.orientation()?;
    // A header may promise more than fits into memory.
    Limits::default().reserve(decoder.total_bytes())?;
    let mut pixels = DynamicImage::from_decoder(decoder)?;
    // The decoder makes up what is missing.
    if format == Some(ImageFormat::Jpeg) && !has_its_end(bytes) {
        return Err("the file ends in the middle of the image".into());
    }
    if pixels.width() == 0 || pixels.height() == 0 {
        return Err("it has no pixels".into());
    }
    pixels.apply_orientation(orientation);
    Ok(on_white(&pixels))
}

/// Lays an image on white. It has one channel where all is grey, else three.
fn on_white(image: &DynamicImage) -> Decoded {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut pixels = image.to_rgba8();
    let mut transparent = false;
    let mut grey = true;
    for Rgba([red, green, blue, alpha]) in pixels.pixels_mut() {
        for value in [&mut *red, &mut *green, &mut *blue] {
            let (over, share) = (u32::from(*value), u32::from(*alpha));
            *value = ((over * share + 255 * (255 - share) + 127) / 255) as u8;
        }
        transparent |= *alpha < 255;
        grey &= red == green && green == blue;
    }
    let channels = if grey { 1 } else { 3 };
    let values = (0..channels).flat_map(|channel| {
        let values = pixels.pixels().map(move |pixel| pixel.0[channel]);
        values.map(|value| f32::from(value) / 255.0)
    });
    Decoded {
        image: Image {
            channels,
            width,
            height,
            values: values.collect(),
        },
        transparent,
    }
}

/// True if a JPEG file goes on to its end marker.
fn has_its_end(mut rest: &[u8]) -> bool {
    // Between markers are the image's bits, where 0xFF is followed by 0 or a restart marker.
    let is_marker = |pair: &[u8]| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xD0..=0xD7 | 0xFF);
    while let Some(at) = rest.windows(2).position(is_marker) {
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        // A header begins with its length, which counts itself. It may hold a small image with an
        // end marker of its own.
        let length = match (marker, rest) {
            (0xD9, _) => return true,
            (0x01 | 0xD8, _) => 0,
            (_, [high, low, ..]) => u16::from_be_bytes([*high, *low]),
            _ => return false,
        };
        rest = rest.get(usize::from(length)..).unwrap_or_default();
    }
    false
}

impl Image {
    /// Reads a PNG, JPEG or WebP file: grey where all of it is, else in colour. What is transparent
    /// is white.
    ///
    /// # Errors
    /// [`Error::File`] names a file that cannot be read or decoded, ends too early, or has no pixels.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let decoded = decode(path);
        let unreadable = |problem| Error::file(path, format!("cannot read this image: {problem}"));
        Ok(decoded.map_err(unreadable)?.image)
    }
}
