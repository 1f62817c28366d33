//! The gradients of a step: those of its micro-batches, of all ranks.

use super::loss::Mean;
use super::{Loss, Parallel, Unit};
use crate::optim::Accumulator;
use crate::{Error, LoraModule, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};

/// What batches came to together.
pub(super) struct Gradients {
    pub grads: GradStore,
    pub loss: Mean,
    pub unit: Unit,
}

/// What the micro-batches of a step have come to so far.
#[derive(Default)]
pub(super) struct Sum {
    /// The gradients of the only micro-batch of a step, which are their own mean.
    only: Option<GradStore>,
    several: Accumulator,
    loss: Mean,
    /// What the losses count.
    pub unit: Unit,
}

impl Sum {
    /// Adds a micro-batch of a step of so many.
    pub fn add(&mut self, loss: &Loss, grads: GradStore, wanted: usize) -> Result<()> {
        self.loss.add(loss.value()?, loss.count);
        match wanted {
            1 => self.only = Some(grads),
            _ => self.several.add_weighted(&grads, loss.count as f64)?,
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.loss.count() == 0
    }

    /// The mean over the micro-batches of all ranks, of which this one may have none.
    pub fn mean<M: LoraModule>(mut self, model: &M, parallel: &Parallel) -> Result<Gradients> {
        let grads = match self.only.take() {
            Some(grads) => Some(grads),
            None if self.is_empty() => None,
            None => Some(self.several.mean()?),
        };
        if parallel.ranks() == 1 {
            return Ok(Gradients {
                grads: grads.unwrap_or_default(),
                loss: self.loss,
                unit: self.unit,
            });
        }
        let vars = model.trainable_vars();
        let mut buffer = match &grads {
            Some(grads) => packed(&vars, grads, self.loss.count())?,
            None => vec![0.0; vars.iter().map(|var| var.elem_count()).sum()],
        };
        buffer.extend(self.loss.parts());
        parallel.sum(&mut buffer)?;
        let (sums, parts) = buffer.split_at(buffer.len() - Mean::PARTS);
        let mut of_all = [0.0; Mean::PARTS];
        of_all.copy_from_slice(parts);
        let loss = Mean::of_parts(of_all);
        Ok(Gradients {
            grads: unpacked(&vars, sums, loss.count())?,
            loss,
            unit: self.unit,
        })
    }
}

/// The gradients as one row of numbers, times their weight.
fn packed(vars: &[Var], grads: &GradStore, weight: usize) -> Result<Vec<f32>> {
    let mut numbers = Vec::new();
    for var in vars {
        match grads.get(var) {
            Some(grad) => {
                let grad = (grad.detach().to_dtype(DType::F32)? * weight as f64)?;
                numbers.extend(grad.flatten_all()?.to_vec1::<f32>()?);
            }
            None => numbers.resize(numbers.len() + var.elem_count(), 0.0),
        }
    }
    Ok(numbers)
}

/// The gradients that are the mean of such sums.
fn unpacked(vars: &[Var], mut sums: &[f32], weight: usize) -> Result<GradStore> {
    let mut grads = GradStore::default();
    for var in vars {
        let (own, rest) = sums.split_at(var.elem_count());
        let mean = own
            .iter()
            .map(|sum| (f64::from(*sum) / weight.max(1) as f64) as f32);
        let mean = Tensor::from_iter(mean, &Device::Cpu)?.reshape(var.shape())?;
        grads.insert(var, mean.to_device(var.device())?.to_dtype(var.dtype())?);
        sums = rest;
    }
    Ok(grads)
}

/// Refuses a loss whose weight among those of other ranks is not known.
pub(super) fn check_unit(loss: &Loss, parallel: &Parallel) -> Result<()> {
    if parallel.ranks() == 1 || loss.unit != Unit::Batches {
        return Ok(());
    }
    Err(Error::Training(vec![
        "the loss does not say how many examples or tokens it is a mean over, and the ranks' shares of a \
         batch may differ in size: return Loss::over_examples or Loss::over_tokens"
            .into(),
    ]))
}
