//! A model of grey images as one of images in colour.

use super::ConvNext;
use crate::models::Architecture;
use crate::{Error, LoraModel, LoraModule, Result};
use candle_core::Tensor;
use candle_nn::VarBuilder;
use std::collections::HashMap;

impl ConvNext {
    /// Path of the first layer, which sees the image.
    pub const FIRST_LAYER: &'static str = "stem.0";

    /// How bright red, green and blue are: Rec. 709.
    pub const LUMA: [f32; 3] = [0.2126, 0.7152, 0.0722];

    /// A model of grey images as one of images in colour. It gives for an image what it gave for the
    /// image's luma, until its [first layer](Self::FIRST_LAYER) is trained.
    ///
    /// # Errors
    /// [`Error::Data`] if the model's images are in colour already.
    pub fn in_colour(&self) -> Result<Self> {
        let mut config = self.config().clone();
        if config.in_chans != 1 {
            let channels = config.in_chans;
            let problem = format!("the model's images are not grey, they have {channels} channels");
            return Err(Error::Data(vec![problem]));
        }
        let params = self.to_frozen()?.named_params().into_iter();
        let mut tensors: HashMap<String, Tensor> =
            params.map(|param| (param.path, param.tensor)).collect();
        let first = tensors.get_mut(&format!("{}.weight", Self::FIRST_LAYER));
        let grey = first.ok_or_else(|| Error::layer(Self::FIRST_LAYER, "has no weight"))?;
        let (dtype, device) = (grey.dtype(), grey.device().clone());
        let luma = Tensor::new(&Self::LUMA, &device)?.to_dtype(dtype)?;
        *grey = grey.broadcast_mul(&luma.reshape((1, 3, 1, 1))?)?;
        config.in_chans = 3;
        let vb = VarBuilder::from_tensors(tensors, dtype, &device);
        Ok(Self::build(&config, vb)?)
    }
}
