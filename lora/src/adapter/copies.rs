//! [`Copies`]: the adapters' copies of a layer's own parameters.

use super::places::Owner;
use super::{Parked, Tie};
use crate::adapter::Access;
use crate::config::Mark;
use crate::{Error, Layer, Param, Result};
use candle_core::Tensor;
use candle_core::quantized::QTensor;
use std::sync::Arc;

/// The adapters' copies of a layer's own parameters: PEFT's `modules_to_save`, trained biases, and
/// residual bases.
///
/// While an adapter is active, the layer's own fields hold the adapter's copy, and the base's
/// parameters are kept here.
#[derive(Clone, Debug, Default)]
pub struct Copies {
    /// The mark of the attribute on the layer's field, for adapters that are added later.
    pub(crate) mark: Option<Mark>,
    /// The layer's path in the checkpoint, where the names of its tensors are known.
    pub(crate) path: Option<Arc<str>>,
    /// Keeps the paths of the model's tensors that are fields.
    pub(crate) places: Option<Arc<Owner>>,
    /// The base's tensors, while a copy is in the layer.
    base: Vec<Tensor>,
    list: Vec<Copied>,
    /// The adapter whose copy is in the layer.
    current: Option<String>,
}

#[derive(Clone, Debug)]
struct Copied {
    adapter: String,
    /// How the copy's weight is tied to another layer's weight.
    tie: Tie,
    parked: Parked,
    /// Which of the tensors are trained.
    trained: Vec<bool>,
    /// In the order of the layer's parameters. Out of date while the copy is in the layer.
    tensors: Vec<Tensor>,
}

impl Copies {
    /// The adapters that have a copy.
    pub fn adapters(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|copy| copy.adapter.as_str())
    }

    /// The adapter whose copy the layer computes with at present.
    pub fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// The base's weight, if a copy stands in the layer in place of the base.
    pub(crate) fn base_weight(&self) -> Option<&Tensor> {
        self.current.as_ref().and(self.base.first())
    }

    /// True if the adapter's copy of the weight is a view of the embedding's copy.
    pub(crate) fn is_tied(&self, adapter: &str) -> bool {
        self.tie_of(adapter) == Tie::Shared
    }

    /// How the weight of the adapter's copy is tied to that of another layer.
    pub(crate) fn tie_of(&self, adapter: &str) -> Tie {
        self.get(adapter).map_or(Tie::None, |copy| copy.tie)
    }

    /// The adapters whose copies are tied in this way.
    pub(crate) fn tied(&self, tie: Tie) -> Vec<String> {
        let copies = self.list.iter().filter(|copy| copy.tie == tie);
        copies.map(|copy| copy.adapter.clone()).collect()
    }

    fn get(&self, adapter: &str) -> Option<&Copied> {
        self.list.iter().find(|copy| copy.adapter == adapter)
    }

    pub(crate) fn has(&self, adapter: &str) -> bool {
        self.get(adapter).is_some()
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        for copy in self.list.iter_mut().filter(|copy| copy.adapter == from) {
            copy.adapter = to.into();
        }
        if self.current() == Some(from) {
            self.current = Some(to.into());
        }
    }

    /// Forgets an adapter's copy, which must not be in the layer.
    pub(crate) fn remove(&mut self, adapter: &str) {
        self.list.retain(|copy| copy.adapter != adapter);
    }

    /// True if any tensor of the adapter's copy is trained. A copy that only holds a residual base
    /// trains none.
    pub(crate) fn trains(&self, adapter: &str) -> bool {
        self.get(adapter)
            .is_some_and(|copy| copy.trained.contains(&true))
    }

    /// The tensors stored here, for conversion. Variables made earlier are forgotten.
    pub(crate) fn parked_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let copies = self.list.iter_mut();
        copies.for_each(|copy| copy.parked = Parked::default());
        // The current copy is out of date here: its tensors are the layer's own fields.
        let (base, current) = (&mut self.base, self.current.as_deref());
        let parked = self.list.iter_mut();
        let parked = parked.filter(move |copy| Some(copy.adapter.as_str()) != current);
        base.iter_mut()
            .chain(parked.flat_map(|copy| &mut copy.tensors))
    }
}

/// Gives an adapter its copy of the layer's own parameters. `trained` says, by position, which of
/// the tensors are trained.
pub(crate) fn add(
    layer: &mut dyn Layer,
    path: &str,
    adapter: &str,
    tensors: Vec<Tensor>,
    trained: Vec<bool>,
    tie: Tie,
) -> Result<()> {
    let copy = Copied {
        adapter: adapter.into(),
        tie,
        parked: Parked::default(),
        trained,
        tensors,
    };
    match layer.copies_mut(Access::new()) {
        Some(copies) => copies.list.push(copy),
        // A tensor that is a field of a model has no room for copies: the field itself is trained.
        None => {
            let mut own = own_mut(layer);
            if own.iter().any(|tensor| tensor.is_variable()) {
                let message = format!(
                    "a tensor that is a field can be trained by one adapter only, and another adapter \
                     trains this tensor already; `{adapter}` cannot train it too"
                );
                return Err(Error::layer(path, message));
            }
            for ((tensor, new), trained) in own.iter_mut().zip(copy.tensors).zip(copy.trained) {
                **tensor = new;
                Parked::default().set_trainable(0, tensor, trained)?;
            }
        }
    }
    Ok(())
}

/// Puts the copy of this adapter into the layer, or the base's own parameters. The layer must not
/// be merged.
///
/// The forward pass reads the layer's own fields, so that an inactive copy costs nothing. The
/// tensors in the fields move into the list first: the optimiser may hold those very variables.
pub(crate) fn switch(layer: &mut dyn Layer, adapter: Option<&str>) -> Result<()> {
    let Some(copies) = layer.copies() else {
        return Ok(());
    };
    let adapter = adapter.filter(|name| copies.has(name));
    if copies.current() == adapter {
        return Ok(());
    }
    // A clone (of handles, not of values), as the layer's fields are borrowed meanwhile.
    let mut copies = copies.clone();
    let present: Vec<Tensor> = own_mut(layer)
        .iter()
        .map(|tensor| (**tensor).clone())
        .collect();
    let current = copies.current.take();
    match copies
        .list
        .iter_mut()
        .find(|copy| Some(&copy.adapter) == current.as_ref())
    {
        Some(copy) => copy.tensors = present,
        None => copies.base = present,
    }
    let new = match adapter.and_then(|name| copies.get(name)) {
        Some(copy) => copy.tensors.clone(),
        None => std::mem::take(&mut copies.base),
    };
    copies.current = adapter.map(String::from);
    for (tensor, new) in own_mut(layer).into_iter().zip(new) {
        *tensor = new;
    }
    if let Some(place) = layer.copies_mut(Access::new()) {
        *place = copies;
    }
    Ok(())
}

/// Gives the layer the base's own parameters and forgets all copies.
pub(crate) fn clear(layer: &mut dyn Layer) -> Result<()> {
    switch(layer, None)?;
    if let Some(copies) = layer.copies_mut(Access::new()) {
        copies.list.clear();
    }
    Ok(())
}

/// Makes the trained tensors of an adapter's copy trainable, or freezes them.
pub(crate) fn set_copy_trainable(
    layer: &mut dyn Layer,
    adapter: &str,
    trainable: bool,
) -> Result<()> {
    let Some(copies) = layer.copies() else {
        return Ok(());
    };
    // A tied copy follows the embedding's copy.
    let copy = copies.get(adapter).filter(|copy| copy.tie != Tie::Shared);
    let Some(copy) = copy.cloned() else {
        return Ok(());
    };
    let (mut parked, trained) = (copy.parked, copy.trained);
    let tensors = seen_by_mut(layer, adapter).into_iter();
    for (place, ((_, tensor), trained)) in tensors.zip(trained).enumerate() {
        if trained {
            parked.set_trainable(place, tensor, trainable)?;
        }
    }
    let copies = layer.copies_mut(Access::new()).into_iter();
    let copies = copies.flat_map(|copies| &mut copies.list);
    for copy in copies.filter(|copy| copy.adapter == adapter) {
        copy.parked = parked.clone();
    }
    Ok(())
}

/// A layer's own parameter or buffer, as an adapter sees it.
pub(crate) struct Own {
    pub(crate) param: Param<Tensor>,
    /// Whether the adapter trains the tensor.
    pub(crate) trained: bool,
    /// The tensor's values, where they are quantised.
    pub(crate) blocks: Option<Arc<QTensor>>,
}

/// The layer's own parameters, as the layer would hold them with this adapter active and nothing
/// merged.
pub(crate) fn seen_by(layer: &dyn Layer, adapter: &str) -> Vec<Own> {
    let adapted = layer.adapted();
    let own = layer
        .params()
        .into_iter()
        .filter(|param| !param.is_adapters());
    let mut own: Vec<Own> = own
        .map(|Param { name, role, tensor }| {
            let original =
                adapted.and_then(|layer| layer.adapters().original(&name, layer.weight_name()));
            let tensor = original.unwrap_or(tensor).clone();
            let weight = adapted.filter(|layer| layer.weight_name() == name);
            let blocks = weight.and_then(|layer| layer.adapters().unmerged_blocks());
            Own {
                blocks: blocks.cloned(),
                // Where a layer has room for copies, only a copy is trained.
                trained: layer.copies().is_none() && tensor.is_variable(),
                param: Param { name, role, tensor },
            }
        })
        .collect();
    let Some(copies) = layer.copies() else {
        return own;
    };
    let is_present = copies.current() == Some(adapter);
    match copies.get(adapter) {
        Some(copy) => {
            for (index, own) in own.iter_mut().enumerate() {
                own.trained = copy.trained[index];
                if !is_present {
                    own.param.tensor = copy.tensors[index].clone();
                }
            }
        }
        None if copies.current.is_some() => {
            for (own, base) in own.iter_mut().zip(&copies.base) {
                own.param.tensor = base.clone();
            }
        }
        None => {}
    }
    own
}

/// The tensors of this adapter's copy, by name, to be changed. A layer without room for copies
/// gives its own tensors. The layer must not be merged, as its fields would hold the merged weight.
pub(crate) fn seen_by_mut<'a>(
    layer: &'a mut dyn Layer,
    adapter: &str,
) -> Vec<(String, &'a mut Tensor)> {
    let own = layer
        .params()
        .into_iter()
        .filter(|param| !param.is_adapters());
    let names: Vec<String> = own.map(|param| param.name).collect();
    let is_parked = layer
        .copies()
        .is_some_and(|copies| copies.current() != Some(adapter));
    let tensors: Vec<&mut Tensor> = match is_parked {
        false => own_mut(layer),
        true => {
            let copies = layer.copies_mut(Access::new()).into_iter();
            let copies = copies.flat_map(|copies| &mut copies.list);
            let copy = copies.filter(|copy| copy.adapter == adapter);
            copy.flat_map(|copy| &mut copy.tensors).collect()
        }
    };
    names.into_iter().zip(tensors).collect()
}

/// Puts the weight of an embedding's copy into this adapter's copy, in a layer that shares the
/// embedding's weight.
pub(crate) fn tie(layer: &mut dyn Layer, path: &str, adapter: &str, weight: Tensor) -> Result<()> {
    let has = layer.copies().is_some_and(|copies| copies.has(adapter));
    if !has {
        // No adapter has an empty name: these are the base's own parameters.
        let own = seen_by(layer, "").into_iter().map(|own| own.param.tensor);
        let mut tensors: Vec<Tensor> = own.collect();
        let mut trained = vec![false; tensors.len()];
        (tensors[0], trained[0]) = (weight, true);
        return add(layer, path, adapter, tensors, trained, Tie::Shared);
    }
    if let Some((_, place)) = seen_by_mut(layer, adapter).into_iter().next() {
        *place = weight;
    }
    let copies = layer
        .copies_mut(Access::new())
        .into_iter()
        .flat_map(|copies| &mut copies.list);
    for copy in copies.filter(|copy| copy.adapter == adapter) {
        (copy.tie, copy.trained[0]) = (Tie::Shared, true);
    }
    Ok(())
}

/// Deletes the tied copies of all adapters but `keep`: their embedding has no copy any more.
pub(crate) fn untie(layer: &mut dyn Layer, keep: &[String]) -> Result<()> {
    let tied = layer.copies().map(|copies| copies.tied(Tie::Shared));
    for adapter in tied
        .into_iter()
        .flatten()
        .filter(|name| !keep.contains(name))
    {
        if layer.copies().and_then(Copies::current) == Some(&adapter) {
            switch(layer, None)?;
        }
        if let Some(copies) = layer.copies_mut(Access::new()) {
            copies.remove(&adapter);
        }
    }
    Ok(())
}

/// The layer's own tensors, parameters and buffers, without those of adapters.
pub(crate) fn own_mut(layer: &mut dyn Layer) -> Vec<&mut Tensor> {
    let params = layer.params_mut(Access::new()).into_iter();
    let own = params.filter(|param| !param.is_adapters());
    own.map(|param| param.tensor).collect()
}
