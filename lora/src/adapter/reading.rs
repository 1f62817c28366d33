//! [`Reading`]: the weight and the bias that a model's own code reads from an adapted layer.

use super::{Adapted, AdaptedMut, updates};
use crate::error::warn;
use crate::ops::checkpoint;
use candle_core::{DType, Device, Error, Result, Tensor};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The weight and the bias with the active adapters in them, for a model whose own code calls
/// `weight()`, `bias()` or `embeddings()`.
///
/// Candle's layers give references, so the values are kept here. They behave as a parameter does:
/// they follow the adapters' variables in place, and their gradient goes on to those variables.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    weight: OnceLock<Read>,
    bias: OnceLock<Read>,
}

/// A layer whose values can be read.
pub(crate) trait Readable: Adapted + Clone + Send + Sync + 'static {}

impl<L: Adapted + Clone + Send + Sync + 'static> Readable for L {}

/// How a value follows from a layer, with the graph down to the layer's variables.
type Compute = fn(&dyn Adapted) -> Result<Tensor>;

/// The weight with every active adapter.
pub(crate) fn weight<L: Readable>(layer: &L) -> &Tensor {
    if !updates::changes_weight(layer) && layer.adapters().blocks.is_none() {
        return Adapted::weight(layer);
    }
    Read::of(
        &layer.adapters().reading.weight,
        layer,
        updates::adapted_weight,
    )
}

/// The bias, with that on B of every active adapter.
pub(crate) fn bias<L: Readable>(layer: &L) -> Option<&Tensor> {
    if !updates::changes_bias(layer) {
        return Adapted::bias(layer);
    }
    let read = &layer.adapters().reading.bias;
    Some(Read::of(read, layer, updates::adapted_bias))
}

#[derive(Clone, Debug)]
struct Read {
    /// With the graph down to the variables.
    tracked: Tensor,
    /// The same storage without a graph.
    plain: Tensor,
    /// The values of the variables that it was computed from; `None` where it cannot be computed.
    /// Clones of a layer share them, as they share the storage.
    sources: Option<Arc<Mutex<Vec<Tensor>>>>,
    /// What stands for a value that cannot be computed: no use accepts a tensor without elements.
    nothing: Tensor,
}

impl Read {
    /// The value at present.
    fn of<'a, L: Readable>(place: &'a OnceLock<Self>, layer: &L, compute: Compute) -> &'a Tensor {
        let read = place.get_or_init(|| Self::new(layer, compute));
        match read.refresh(layer, compute) {
            Ok(()) if layer.adapters().training => &read.tracked,
            Ok(()) => &read.plain,
            Err(error) => {
                warn(&error.to_string());
                &read.nothing
            }
        }
    }

    fn new<L: Readable>(layer: &L, compute: Compute) -> Self {
        let weight = layer.unmerged_weight();
        let nothing = Tensor::zeros(0, DType::F32, &Device::Cpu).unwrap_or(weight.detach());
        let start = || -> Result<(Tensor, Vec<Tensor>)> {
            let (own, sources) = (in_mode(layer, true), copied(layer)?);
            // The node keeps the layer, and nothing that lies between the adapters and the sum.
            let tracked = checkpoint(&nothing, move |_| compute(&own))?;
            Ok((tracked, sources))
        };
        let (tracked, sources) = match start() {
            Ok((tracked, sources)) => (tracked, Some(Arc::new(Mutex::new(sources)))),
            Err(error) => {
                warn(&error.to_string());
                (nothing.clone(), None)
            }
        };
        Self {
            plain: tracked.detach(),
            tracked,
            sources,
            nothing,
        }
    }

    /// Computes the value anew, in its place, if a variable has changed.
    fn refresh<L: Readable>(&self, layer: &L, compute: Compute) -> Result<()> {
        let Some(sources) = &self.sources else {
            return Ok(());
        };
        let mut sources = sources.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pairs = sources.iter().zip(variables(layer));
        if pairs.try_fold(true, |all, (old, new)| {
            Ok::<_, Error>(all && is_same(old, new)?)
        })? {
            return Ok(());
        }
        let value = compute(&in_mode(layer, false))?;
        self.plain.slice_set(&value.contiguous()?, 0, 0)?;
        *sources = copied(layer)?;
        Ok(())
    }
}

fn in_mode<L: Readable>(layer: &L, training: bool) -> L {
    let mut layer = layer.clone();
    layer.adapters_mut().training = training;
    layer
}

/// The tensors that change as training goes on, and with them the values.
fn variables(layer: &dyn Adapted) -> impl Iterator<Item = &Tensor> {
    let adapters = layer.adapters();
    let own = [Some(layer.unmerged_weight()), layer.bias()];
    let of_adapters = adapters.iter().flat_map(|adapter| adapter.tensors());
    let rows = adapters.tokens().iter().map(|tokens| tokens.rows());
    let all = own.into_iter().flatten();
    let all = all.chain(of_adapters.map(|(_, tensor)| tensor)).chain(rows);
    all.filter(|tensor| tensor.track_op())
}

fn copied(layer: &dyn Adapted) -> Result<Vec<Tensor>> {
    variables(layer)
        .map(|tensor| tensor.detach().copy())
        .collect()
}

fn is_same(old: &Tensor, new: &Tensor) -> Result<bool> {
    let same = old.eq(&new.detach())?.min_all()?;
    Ok(same.to_scalar::<u8>()? == 1)
}
