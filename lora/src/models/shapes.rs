//! Names and shapes of a model's parameters, without the model.

use super::Architecture;
use crate::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use indexmap::IndexMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The parameters that a model of this configuration has, in the order in which the model asks for
/// them. None is allocated.
///
/// # Errors
/// If the configuration is not valid.
///
/// ```
/// use lora::models::{self, convnext::{ConvNext, ConvNextConfig}};
///
/// let shapes = models::parameter_shapes::<ConvNext>(&ConvNextConfig::default())?;
/// assert_eq!(shapes["head.fc.weight"].dims(), [1000, 768]);
/// let count: usize = shapes.values().map(|shape| shape.elem_count()).sum();
/// assert_eq!(count, 28_589_128);
/// # Ok::<(), lora::Error>(())
/// ```
pub fn parameter_shapes<M: Architecture>(config: &M::Config) -> Result<IndexMap<String, Shape>> {
    let shapes = Arc::new(Mutex::new(IndexMap::new()));
    let recorder = ShapeRecorder(shapes.clone());
    let vb = VarBuilder::from_backend(Box::new(recorder), DType::F32, Device::Cpu);
    M::build(config, vb).map_err(Error::Candle)?;
    let mut shapes = shapes.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *shapes))
}

/// Zeros that take no memory.
pub(super) struct Placeholder;

/// Records the name and shape of each parameter that a model asks for.
struct ShapeRecorder(Arc<Mutex<IndexMap<String, Shape>>>);

impl SimpleBackend for Placeholder {
    fn get(
        &self,
        shape: Shape,
        _: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        bail!("`{name}`: a placeholder needs a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

impl SimpleBackend for ShapeRecorder {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let mut shapes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shapes.insert(name.into(), shape.clone());
        Placeholder.get(shape, name, init, dtype, device)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        Placeholder.get_unchecked(name, dtype, device)
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
