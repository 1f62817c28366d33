//! [`Adapters`]: the adapters of one layer, and which of them act.

use super::reading::Reading;
use super::{Adapted, Adapter, Copies, Recorder, Rows, Tokens, seen};
use crate::{Error, Part, Result};
use candle_core::Tensor;
use candle_core::quantized::QTensor;
use std::sync::Arc;

/// The adapters of one layer: which adapters the layer has, which of them are active, and the
/// layer's own weight while adapters are merged into it.
#[derive(Clone, Debug)]
pub struct Adapters {
    /// The layer's path in its model, for messages.
    pub(crate) path: String,
    pub(crate) list: Vec<Adapter>,
    /// The blocks that hold the weight's values, where the weight is quantised.
    pub(crate) blocks: Option<Arc<QTensor>>,
    /// The rows of an embedding that adapters train. A head that shares the embedding's weight has
    /// views of these rows.
    pub(crate) tokens: Vec<Tokens>,
    /// The names of the active adapters, in the order in which they apply. The list is the whole
    /// model's: a name stays here even if this layer has no adapter of that name.
    pub(crate) active: Vec<String>,
    /// `Some` exactly while merged.
    pub(crate) merged: Option<Merged>,
    /// The adapters' copies of the layer's own parameters.
    pub(crate) copies: Copies,
    /// Which adapter acts on which row of a batch, in a view for mixed batches.
    pub(crate) rows: Option<Rows>,
    /// Notes the layer's inputs while the model is calibrated.
    pub(crate) recorder: Option<Recorder>,
    pub(crate) training: bool,
    /// What the model's own code has read of the layer.
    pub(crate) reading: Reading,
}

/// A layer's state while adapters are merged into its weight.
#[derive(Clone, Debug)]
pub(crate) struct Merged {
    /// The merged adapters, in order.
    pub(crate) names: Vec<String>,
    /// The weight and bias from before merging.
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    /// The weight's blocks from before merging.
    pub(crate) blocks: Option<Arc<QTensor>>,
    /// The relative error of the merged weight where it was quantised again.
    pub(crate) error: Option<f64>,
}

impl Adapters {
    pub(crate) fn new(path: &str) -> Self {
        Self {
            path: path.into(),
            list: Vec::new(),
            blocks: None,
            tokens: Vec::new(),
            active: Vec::new(),
            merged: None,
            copies: Copies::default(),
            rows: None,
            recorder: None,
            training: true,
            reading: Reading::default(),
        }
    }

    /// The adapters, to be changed: what was read of the layer is out of date.
    pub(crate) fn changing(&mut self) -> &mut Self {
        self.reading = Reading::default();
        self
    }

    /// The adapters, in the order in which they were added.
    pub fn iter(&self) -> std::slice::Iter<'_, Adapter> {
        self.list.iter()
    }

    /// The adapter of this name.
    pub fn get(&self, name: &str) -> Option<&Adapter> {
        self.list.iter().find(|adapter| adapter.name == name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Adapter> {
        self.list.iter_mut().find(|adapter| adapter.name == name)
    }

    /// Makes an adapter trainable, or freezes it. A view of another layer's adapter follows that
    /// layer.
    pub(crate) fn set_trainable(&mut self, name: &str, trainable: bool) -> Result<()> {
        if let Some(adapter) = self.get_mut(name) {
            adapter.set_trainable(trainable)?;
        }
        let tokens = self
            .tokens
            .iter_mut()
            .filter(|tokens| tokens.adapter == name);
        for tokens in tokens {
            tokens.set_trainable(trainable)?;
        }
        Ok(())
    }

    /// Gives an adapter another name, wherever its name stands here. Copies are renamed apart.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        let merged = self.merged.as_mut().map(|merged| &mut merged.names);
        let listed = self.list.iter_mut().map(|adapter| &mut adapter.name);
        let tokens = self.tokens.iter_mut().map(|tokens| &mut tokens.adapter);
        let names = listed
            .chain(tokens)
            .chain(&mut self.active)
            .chain(merged.into_iter().flatten());
        for name in names.filter(|name| *name == from) {
            *name = to.into();
        }
    }

    /// The active adapters, merged ones included, in the order in which they apply.
    pub fn active(&self) -> impl Iterator<Item = &Adapter> {
        self.active.iter().filter_map(|name| self.get(name))
    }

    /// True if the layer has no low-rank update. Trained rows of an embedding do not count as one.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The rows of an embedding that adapters train. A head that shares the embedding's weight has
    /// the embedding's rows.
    pub fn tokens(&self) -> &[Tokens] {
        &self.tokens
    }

    pub(crate) fn tokens_of(&self, name: &str) -> Option<&Tokens> {
        self.tokens.iter().find(|tokens| tokens.adapter == name)
    }

    /// True if the adapter of this name has an update or trained rows here. Copies do not count.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some() || self.tokens_of(name).is_some()
    }

    /// The tensors of all adapters, each with its adapter's name, in the order of parameters. Views
    /// of another layer's tensors are left out, as the other layer lists these tensors.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, Part, &Tensor)> {
        let own = self.list.iter().flat_map(|adapter| {
            let tensors = adapter.own_tensors();
            tensors.map(|(part, tensor)| (adapter.name.as_str(), part, tensor))
        });
        let tokens = self.tokens.iter();
        own.chain(tokens.map(|t| (t.adapter.as_str(), Part::Tokens, &t.rows)))
    }

    /// The same tensors, to be changed.
    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let own = self.list.iter_mut();
        let own = own.flat_map(|adapter| adapter.own_tensors_mut().map(|(_, tensor)| tensor));
        own.chain(self.tokens.iter_mut().map(|tokens| &mut tokens.rows))
    }

    /// True while adapters are merged into the weight.
    pub fn is_merged(&self) -> bool {
        self.merged.is_some()
    }

    /// The blocks that hold the weight, where the weight is quantised. While adapters are merged,
    /// these are the merged weight's.
    pub fn blocks(&self) -> Option<&Arc<QTensor>> {
        self.blocks.as_ref()
    }

    /// As [`blocks`](Self::blocks), without merged adapters.
    pub(crate) fn unmerged_blocks(&self) -> Option<&Arc<QTensor>> {
        let merged = self.merged.as_ref();
        merged.map_or(self.blocks.as_ref(), |merged| merged.blocks.as_ref())
    }

    /// True while adapters are merged into a quantised weight, which is in full precision since.
    pub(crate) fn is_merged_in_full(&self) -> bool {
        let merged = self.merged.as_ref();
        self.blocks.is_none() && merged.is_some_and(|merged| merged.blocks.is_some())
    }

    /// While adapters are merged into a quantised weight: how far the merged weight is from the sum that
    /// it was quantised from, relative to the sum.
    pub fn requantising_error(&self) -> Option<f64> {
        self.merged.as_ref()?.error
    }

    /// The names of the merged adapters, in order.
    pub fn merged(&self) -> &[String] {
        self.merged.as_ref().map_or(&[], |merged| &merged.names)
    }

    /// While merged: the layer's own weight or bias from before merging. `weight` is the name that the
    /// layer gives its weight.
    pub(crate) fn original(&self, name: &str, weight: &str) -> Option<&Tensor> {
        let merged = self.merged.as_ref()?;
        match name {
            name if name == weight => Some(&merged.weight),
            "bias" => merged.bias.as_ref(),
            _ => None,
        }
    }

    /// The adapters that the forward pass computes: the active ones that are not merged.
    pub(crate) fn to_compute(&self) -> impl Iterator<Item = &Adapter> {
        let merged = self.merged();
        self.active()
            .filter(move |adapter| !merged.contains(&adapter.name))
    }

    /// Checks that merging just these adapters does not change what the layer computes. DoRA
    /// multiplies the result of the adapters before it, so that the order of adapters matters.
    pub(crate) fn check_order(&self, merged: &[String]) -> Result<()> {
        let active: Vec<&Adapter> = self.active().collect();
        let is_dora = |adapter: &&Adapter| adapter.magnitude.is_some();
        let (first, rest): (Vec<&Adapter>, Vec<&Adapter>) = active
            .iter()
            .partition(|adapter| merged.contains(&adapter.name));
        if first.is_empty() || rest.is_empty() || !active.iter().any(is_dora) {
            return Ok(());
        }
        // Merged adapters act before all others, whatever their place among the active ones.
        let comes_first = active.iter().zip(&first).all(|(a, b)| a.name == b.name);
        // Merging adds a bias on B to the layer's own bias, which DoRA does not multiply.
        let biased = first.iter().any(|adapter| adapter.bias.is_some());
        match comes_first && !(biased && rest.iter().any(is_dora)) {
            true => Ok(()),
            false => Err(Error::layer(
                &self.path,
                "DoRA multiplies the result of the active adapters before it: merge adapters in the \
                 order in which they are active, or merge all",
            )),
        }
    }

    /// The rows that the forward pass puts in place of the base's rows.
    pub(crate) fn tokens_to_compute(&self) -> impl Iterator<Item = Tokens> {
        let merged = self.merged();
        let acting = self
            .active
            .iter()
            .filter(move |name| !merged.contains(name));
        let acting = acting.filter_map(|name| self.tokens_of(name));
        acting.map(|tokens| tokens.with_rows(self.seen(&tokens.rows)))
    }

    /// The names of the adapters for a merged weight: first the merged adapters, then the other
    /// active adapters.
    pub(crate) fn to_merge(&self) -> Vec<String> {
        let mut names = self.merged().to_vec();
        let more = self.active.iter().filter(|name| self.has(name));
        for name in more {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// In a view for mixed batches: the rows, if some row's adapter changes what the layer computes.
    /// Otherwise no adapter is active, and all rows are computed at once.
    pub(crate) fn mixed_rows(&self) -> Option<&Rows> {
        self.rows.as_ref().filter(|rows| rows.touch(self))
    }

    /// In a view for mixed batches: each group of rows, with what `f` reads from the group's layer.
    pub(crate) fn row_parts<L: Adapted + Clone, T>(
        &self,
        layer: &L,
        f: impl Fn(&L) -> candle_core::Result<T>,
    ) -> candle_core::Result<Vec<(Vec<u32>, T)>> {
        let Some(rows) = self.mixed_rows() else {
            return Ok(Vec::new());
        };
        let layers = rows.layers(layer)?.into_iter();
        layers.map(|(rows, layer)| Ok((rows, f(&layer)?))).collect()
    }

    /// The tensor as the layer's forward pass sees it.
    pub(crate) fn seen(&self, tensor: &Tensor) -> Tensor {
        seen(tensor, self.training)
    }
}
