//! Gradient accumulation: one step of several micro-batches.

use crate::adapter::wider;
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, TensorId};
use std::collections::HashMap;

/// Sums the gradients of micro-batches; their mean makes one step.
///
/// Sums are taken in at least f32. Where a micro-batch has no gradient for a parameter, that
/// gradient counts as 0.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::Linear;
/// use lora::optim::Accumulator;
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// let weight = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
/// let model = Linear::new(weight, None).to_lora(&LoraConfig::new(2))?;
/// let mut sum = Accumulator::default();
/// for input in [1f32, 2.0] {
///     let input = Tensor::full(input, (1, 3), &Device::Cpu)?;
///     sum.add(&model.backward(&model.forward(&input)?.sum_all()?)?)?;
/// }
/// assert_eq!(sum.len(), 2);
/// let grads = sum.mean()?; // sum is empty again
/// assert!(model.trainable_vars().iter().all(|var| grads.get(var).is_some()));
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Accumulator {
    sums: HashMap<TensorId, Sum>,
    weight: f64,
    count: usize,
}

#[derive(Debug)]
struct Sum {
    tensor: Tensor,
    /// The dtype of the gradients, which their mean gets back.
    dtype: DType,
}

impl Accumulator {
    /// Adds the gradients of a micro-batch.
    ///
    /// # Errors
    /// If gradients of one parameter differ in shape.
    pub fn add(&mut self, grads: &GradStore) -> Result<()> {
        self.add_weighted(grads, 1.0)
    }

    /// Adds the gradients of a micro-batch whose share in the mean is proportional to `weight`: the
    /// number of its samples or tokens, if its loss is a mean over them.
    ///
    /// # Errors
    /// If the weight is not positive, or gradients of one parameter differ in shape.
    pub fn add_weighted(&mut self, grads: &GradStore, weight: f64) -> Result<()> {
        if !(weight > 0.0 && weight.is_finite()) {
            let problem = format!("a micro-batch of weight {weight}: it must be above 0");
            return Err(Error::Optimizer(vec![problem]));
        }
        for &id in grads.get_ids() {
            let Some(grad) = grads.get_id(id) else {
                continue;
            };
            let dtype = grad.dtype();
            let grad = grad.detach().to_dtype(wider(dtype, DType::F32))?;
            let grad = (grad * weight)?;
            let tensor = match self.sums.get(&id) {
                Some(sum) => (&sum.tensor + grad)?,
                None => grad,
            };
            self.sums.insert(id, Sum { tensor, dtype });
        }
        self.weight += weight;
        self.count += 1;
        Ok(())
    }

    /// Number of micro-batches since the last mean.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if there is no micro-batch yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The mean of the gradients, for a step. The accumulator is empty afterwards.
    ///
    /// # Errors
    /// If there is no micro-batch.
    pub fn mean(&mut self) -> Result<GradStore> {
        let Self { sums, weight, .. } = std::mem::take(self);
        if weight == 0.0 {
            let problem = "the mean of no micro-batch: call add() before mean()".into();
            return Err(Error::Optimizer(vec![problem]));
        }
        let mut grads = GradStore::default();
        for (id, Sum { tensor, dtype }) in sums {
            grads.insert_id(id, (tensor / weight)?.to_dtype(dtype)?);
        }
        Ok(grads)
    }
}
