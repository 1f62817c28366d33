//! Tying: a head may share an embedding's weight. What an adapter does to the embedding then acts
//! on the head too.

use crate::adapter::AdaptedMut;
use crate::adapter::{Adapted, Adapter, Tie, Tokens, copies, dora, updates};
use crate::config::Kind;
use crate::traits::{each_layer, try_each_layer_mut};
use crate::{Layer, LoraConfig, LoraModule, Result};
use candle_core::{Tensor, TensorId, Var};
use std::collections::HashMap;

/// What an embedding gives to the heads that share its weight.
#[derive(Default)]
struct Shared {
    tokens: Vec<Tokens>,
    adapters: Vec<Adapter>,
    /// Copies of the weight, by adapter.
    copies: Vec<(String, Tensor)>,
    /// The adapter whose copy is in the embedding at present.
    current: Option<String>,
}

/// Gives every head what the embedding that shares its weight has at present: trained rows, copies
/// of the weight, and adapters of a configuration with `ensure_weight_tying`.
///
/// The head gets such an adapter transposed: its A is Bᵀ of the embedding, its B is Aᵀ. Both are
/// views of the embedding's variables. So each variable exists once, and the gradients from both
/// layers add up in it. DoRA's magnitude alone is the head's own.
pub(crate) fn retie<M: LoraModule>(model: &mut M) -> Result<()> {
    // By the weight's identity: sharing is a fact of tensors, which no path shows.
    let mut shared: HashMap<TensorId, Shared> = HashMap::new();
    each_layer(model, |_, layer| {
        let Some(adapted) = layer.adapted().filter(|layer| layer.is_lookup()) else {
            return;
        };
        let adapters = adapted.adapters();
        let ties = adapters.iter().filter(|adapter| adapter.tie == Tie::Shares);
        let copies = adapters.copies.tied(Tie::Shares).into_iter();
        let copies = copies.filter_map(|name| {
            let weight = copies::seen_by(layer, &name).into_iter().next()?;
            Some((name, weight.param.tensor))
        });
        let of_layer = Shared {
            tokens: adapters.tokens.clone(),
            adapters: ties.cloned().collect(),
            copies: copies.collect(),
            current: adapters.copies.current().map(String::from),
        };
        shared.insert(base_id(adapted), of_layer);
    });
    let none = Shared::default();
    try_each_layer_mut(model, |path, layer| {
        let head = layer.adapted().filter(|layer| !layer.is_lookup());
        match head.map(base_id) {
            Some(id) => shared.get(&id).unwrap_or(&none).give(path, layer),
            None => Ok(()),
        }
    })
}

impl Shared {
    /// Replaces what the layer had from the embedding by this.
    fn give(&self, path: &str, layer: &mut dyn Layer) -> Result<()> {
        if let Some(adapted) = layer.adapted_mut() {
            let views = self.adapters.iter().map(|adapter| view(adapted, adapter));
            let views: Vec<Adapter> = views.collect::<Result<_>>()?;
            let adapters = adapted.adapters_mut();
            adapters.list.retain(|adapter| adapter.tie != Tie::Shared);
            adapters.tokens.retain(|tokens| !tokens.is_shared());
            adapters
                .tokens
                .extend(self.tokens.iter().map(Tokens::shared));
            for view in views {
                // An adapter that the head has under this name would add the update twice.
                adapters.list.retain(|own| own.name != view.name);
                adapters.list.push(view);
            }
        }
        // A merged layer keeps the copies that it was merged with. Code that changes copies
        // unmerges first.
        if layer
            .adapted()
            .is_some_and(|layer| layer.adapters().is_merged())
        {
            return Ok(());
        }
        let names: Vec<String> = self.copies.iter().map(|(name, _)| name.clone()).collect();
        copies::untie(layer, &names)?;
        for (name, weight) in &self.copies {
            copies::tie(layer, path, name, weight.clone())?;
            if self.current.as_ref() == Some(name) {
                copies::switch(layer, Some(name))?;
            }
        }
        Ok(())
    }
}

/// The identity of the base's weight, even while an adapter's copy or a merged weight is in its
/// place.
pub(crate) fn base_id(layer: &dyn Adapted) -> TensorId {
    let copies = &layer.adapters().copies;
    let base = copies.base_weight();
    base.unwrap_or(layer.unmerged_weight()).id()
}

/// The embedding's adapter as the head has it. Its magnitude is the head's own: the head has one for
/// each token, the embedding one for each column.
fn view(head: &dyn Adapted, adapter: &Adapter) -> Result<Adapter> {
    let old = head.adapters().get(&adapter.name);
    let old = old.filter(|old| old.tie == Tie::Shared);
    let mut view = Adapter {
        a: adapter.b.t()?,
        b: adapter.a.t()?,
        tie: Tie::Shared,
        magnitude: None,
        parked: old.map(|old| old.parked.clone()).unwrap_or_default(),
        ..adapter.clone()
    };
    let own = old.and_then(|old| old.magnitude.clone());
    view.magnitude = match (&adapter.magnitude, own) {
        (None, _) => None,
        (Some(_), Some(own)) => Some(own),
        (Some(of_embedding), None) => {
            let norms = updates::norms(head, &view)?;
            let weight = head.unmerged_weight();
            let shape = dora::magnitude_shape(weight.rank(), norms.elem_count());
            let start = dora::start(&norms, weight.dtype(), of_embedding.dtype(), shape)?;
            Some(match of_embedding.is_variable() {
                true => Var::from_tensor(&start)?.into_inner(),
                false => start,
            })
        }
    };
    Ok(view)
}

/// The problems that keep `ensure_weight_tying` from having its effect.
pub(crate) fn problems<M: LoraModule>(model: &M, name: &str) -> Vec<String> {
    let (mut embeddings, mut problems) = (HashMap::new(), Vec::new());
    each_layer(model, |path, layer| {
        let copied = layer.copies().is_some_and(|copies| copies.has(name));
        let Some(layer) = layer.adapted().filter(|layer| layer.is_lookup()) else {
            return;
        };
        let adapters = layer.adapters();
        let has_any = copied || adapters.has(name);
        embeddings.insert(base_id(layer), (path.to_string(), has_any));
    });
    let mut tied = false;
    each_layer(model, |path, layer| {
        let Some(layer) = layer.adapted().filter(|layer| !layer.is_lookup()) else {
            return;
        };
        if let Some((embedding, has_any)) = embeddings.get(&base_id(layer)) {
            tied |= has_any;
            if layer.adapters().get(name).is_some() && !has_any {
                problems.push(format!(
                    "ensure_weight_tying: `{path}` shares the weight of `{embedding}`: make \
                     `{embedding}` a target, and both are adapted"
                ));
            }
        }
    });
    if !tied && problems.is_empty() {
        problems.push("ensure_weight_tying: no target shares its weight with a head".into());
    }
    problems
}

/// The problems of layers that share the weight of an embedding which the adapter trains, in rows
/// or in full.
///
/// A head with a residual base is one: the trained weight still holds what the residual base lost,
/// so that it would count twice. Another is a layer that cannot have other rows.
pub(crate) fn rows_problems<M: LoraModule>(
    model: &M,
    name: &str,
    config: &LoraConfig,
) -> Vec<String> {
    let (mut embeddings, mut problems) = (HashMap::new(), Vec::new());
    let mut tables = HashMap::new();
    each_layer(model, |path, layer| {
        let Some(layer) = layer.adapted() else {
            return;
        };
        let (adapters, id) = (layer.adapters(), base_id(layer));
        if layer.is_lookup() {
            tables.insert(id, path.to_string());
        } else if let Some(embedding) = tables.get(&id)
            && adapters
                .tokens()
                .iter()
                .any(|tokens| tokens.adapter() == name && !tokens.is_shared())
        {
            problems.push(format!(
                "trainable_token_indices names `{path}`, which shares the weight of `{embedding}`: \
                 name `{embedding}`, whose rows act on both"
            ));
        }
        let starts = adapters
            .get(name)
            .is_some_and(|adapter| adapter.initial.is_some());
        if layer.is_lookup() {
            let copies = adapters.copies.tied(Tie::Shares);
            let rows = adapters.tokens_of(name).is_some();
            if rows || copies.iter().any(|of| of == name) {
                embeddings.insert(id, (path.to_string(), rows));
            }
        } else if let Some((embedding, true)) = embeddings.get(&id)
            && layer.layer_kind() != Kind::Linear
        {
            problems.push(format!(
                "`{path}`, a {}, shares the weight of `{embedding}`, whose rows are trained: only a \
                 Linear can share trained rows",
                layer.layer_kind()
            ));
        } else if let Some((embedding, _)) = embeddings.get(&id)
            && starts
        {
            problems.push(format!(
                "`{path}` shares the weight of `{embedding}`, which is trained, but `{}` \
                 gives `{path}` a residual base: use another initial value",
                config.init
            ));
        }
    });
    problems
}
