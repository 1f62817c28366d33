//! What a model wants of its images.

use crate::error::warn;
use crate::file::read_object;
use crate::{Error, Result};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// More than any model has. A damaged file must not make us ask for all memory.
const MOST_PIXELS: usize = 1 << 13;

/// What a model wants of its images, in the form of timm's `pretrained_cfg`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// Channels, height, width.
    pub input_size: [usize; 3],
    /// Subtracted from each channel, whose values are from 0 to 1.
    pub mean: Vec<f64>,
    /// Then divides each channel.
    pub std: Vec<f64>,
    /// Names of the classes, if the file knows some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub label_names: Vec<String>,
}

impl Input {
    /// Reads what stands beside a model: timm's `pretrained_cfg` in `config.json`, or in `NAME.json` for
    /// weights in `NAME.safetensors`; or transformers' `preprocessor_config.json`. The model is a
    /// directory, or a file of weights.
    ///
    /// Images are always cut to their middle square and resized as Pillow's bilinear filter does,
    /// whatever `resample` and `crop_pct` say.
    ///
    /// # Errors
    /// [`Error::File`] if no such file is there, the images are not square, are neither grey nor in
    /// colour, or mean and deviation are not given for each channel.
    pub fn read(model: impl AsRef<Path>) -> Result<Self> {
        let (path, map) = description(model.as_ref())?;
        let input = match map.get("pretrained_cfg") {
            Some(input) => Self::deserialize(input).map_err(|error| error.to_string()),
            None if is_transformers(&map) => Self::of_transformers(&map),
            None => {
                Err("`pretrained_cfg` is missing, which says what images the model wants".into())
            }
        };
        let checked = input.and_then(|input| input.check().map(|()| input));
        checked.map_err(|problem| Error::file(path, problem))
    }

    /// Reads a `preprocessor_config.json`.
    fn of_transformers(map: &Map<String, Value>) -> Result<Self, String> {
        let number = |key: &str, default: f64| match map.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_f64()
                .ok_or(format!("`{key}` is {value}: a number is expected")),
        };
        let factor = number("rescale_factor", 1.0 / 255.0)?;
        if (factor * 255.0 - 1.0).abs() > 1e-6 {
            return Err(format!(
                "`rescale_factor` is {factor}: only 1/255 is supported"
            ));
        }
        let is_off = |key: &str| map.get(key) == Some(&json!(false));
        if is_off("do_rescale") {
            return Err("`do_rescale` is false: values from 0 to 1 alone are supported".into());
        }
        let values = |key: &str, default: f64| -> Result<Vec<f64>, String> {
            let values = match map.get(key) {
                _ if is_off("do_normalize") => return Ok(vec![default; 3]),
                None => return Err(format!("`{key}` is missing")),
                Some(values) => Vec::deserialize(values),
            };
            values.map_err(|error| format!("`{key}`: {error}"))
        };
        // A crop decides where there is one; the size before only says how much is cut.
        let key = match map.get("crop_size") {
            Some(Value::Object(_) | Value::Number(_)) if !is_off("do_center_crop") => "crop_size",
            _ => "size",
        };
        let [height, width] = sides(map.get(key)).ok_or(format!(
            "`{key}` is {}: a side, or height and width, are expected",
            map.get(key).unwrap_or(&Value::Null)
        ))?;
        let (mean, std) = (values("image_mean", 0.0)?, values("image_std", 1.0)?);
        Ok(Self {
            input_size: [mean.len(), height, width],
            mean,
            std,
            label_names: Vec::new(),
        })
    }

    /// Channels of an image.
    pub fn channels(&self) -> usize {
        self.input_size[0]
    }

    /// Side of an image.
    pub fn size(&self) -> usize {
        self.input_size[1]
    }

    /// The same for images in colour: what is given for grey goes for each channel.
    pub fn in_colour(&self) -> Self {
        let spread = |values: &[f64]| match values {
            [grey] => vec![*grey; 3],
            colours => colours.to_vec(),
        };
        Self {
            input_size: [3, self.input_size[1], self.input_size[2]],
            mean: spread(&self.mean),
            std: spread(&self.std),
            label_names: self.label_names.clone(),
        }
    }

    /// Brings values from 0 to 1, (batch, channels, height, width), into the form that the model was
    /// trained with.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use lora::images::Input;
    ///
    /// let input: Input = serde_json::from_str(
    ///     r#"{"input_size": [1, 8, 8], "mean": [0.5], "std": [0.25]}"#,
    /// ).unwrap();
    /// let images = Tensor::ones((2, 1, 8, 8), DType::F32, &Device::Cpu)?;
    /// assert_eq!(input.normalize(&images)?.max_all()?.to_scalar::<f32>()?, 2.0);
    /// # Ok::<(), lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Data`] if the images have other channels.
    pub fn normalize(&self, images: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = images.dims4()?;
        if channels != self.channels() {
            return Err(Error::Data(vec![format!(
                "images of {channels} channels for a model of {}",
                self.channels()
            )]));
        }
        // By hand: candle would wake threads of its own for it.
        let mut values = images.flatten_all()?.to_vec1::<f32>()?;
        let per_channel = self.mean.iter().zip(&self.std).cycle();
        for (values, (mean, std)) in values.chunks_mut((height * width).max(1)).zip(per_channel) {
            let (mean, std) = (*mean as f32, *std as f32);
            values
                .iter_mut()
                .for_each(|value| *value = (*value - mean) / std);
        }
        Ok(Tensor::from_vec(values, images.dims(), images.device())?)
    }

    /// The problem with these values, if any.
    fn check(&self) -> Result<(), String> {
        let [channels, height, width] = self.input_size;
        if ![1, 3].contains(&channels) {
            return Err(format!(
                "its images have {channels} channels: 1 (grey) and 3 (colour) can be read"
            ));
        }
        if height != width || !(1..=MOST_PIXELS).contains(&height) {
            return Err(format!(
                "its images are {height}x{width}: they must be square, with a side from 1 to {MOST_PIXELS}"
            ));
        }
        if self.mean.len() != channels || self.std.len() != channels {
            return Err(format!(
                "mean and std must have a value for each of {channels} channel(s)"
            ));
        }
        let mut values = self.mean.iter().chain(&self.std);
        if values.any(|value| !value.is_finite()) || self.std.contains(&0.0) {
            return Err("mean and std must be finite, and std not 0".into());
        }
        Ok(())
    }
}

/// The file that says what images a model wants, and its contents.
fn description(model: &Path) -> Result<(PathBuf, Map<String, Value>)> {
    let (directory, own) = match model.is_dir() {
        true => (model, None),
        false => (
            model.parent().unwrap_or(model),
            Some(model.with_extension("json")),
        ),
    };
    let named = ["config.json", "preprocessor_config.json"].map(|name| directory.join(name));
    let files = own.into_iter().chain(named).filter(|path| path.is_file());
    for path in files {
        let map = read_object(&path)?;
        // A `config.json` of transformers says nothing of images.
        if map.contains_key("pretrained_cfg") || is_transformers(&map) {
            for key in ["resample", "interpolation"] {
                note(
                    &path,
                    key,
                    map.get("pretrained_cfg")
                        .and_then(Value::as_object)
                        .unwrap_or(&map),
                );
            }
            return Ok((path, map));
        }
    }
    let problem = "there is no file beside it that says what images it wants: `preprocessor_config.json` of \
                   transformers, or `pretrained_cfg` in timm's `config.json` or in NAME.json for NAME.safetensors";
    Err(Error::file(model, problem))
}

/// Whether a file is a `preprocessor_config.json`.
fn is_transformers(map: &Map<String, Value>) -> bool {
    ["image_mean", "image_processor_type", "do_rescale"]
        .iter()
        .any(|key| map.contains_key(*key))
}

/// Warns of a filter that is not the one used here.
fn note(path: &Path, key: &str, map: &Map<String, Value>) {
    let Some(value) = map.get(key).filter(|value| !value.is_null()) else {
        return;
    };
    if *value != json!(2) && *value != json!("bilinear") {
        warn(&format!(
            "{}: `{key}` is {value}, images are resized by the bilinear filter here",
            path.display()
        ));
    }
}

/// Height and width, of a side or of an object.
fn sides(size: Option<&Value>) -> Option<[usize; 2]> {
    let side = |value: &Value| usize::try_from(value.as_u64()?).ok();
    match size? {
        Value::Object(map) => match (
            map.get("height"),
            map.get("width"),
            map.get("shortest_edge"),
        ) {
            (Some(height), Some(width), _) => Some([side(height)?, side(width)?]),
            (_, _, Some(shortest)) => Some([side(shortest)?; 2]),
            _ => None,
        },
        value => Some([side(value)?; 2]),
    }
}
