//! Heads that share an embedding's weight: what an adapter does to the embedding acts on them too.

use super::{Adapter, Tokens};
use crate::params::{each_layer, each_layer_mut};
use crate::{LoraModule, Result};
use candle_core::TensorId;
use std::collections::HashMap;

/// What an embedding shares with the layers that have its weight.
#[derive(Default)]
struct Shared {
    tokens: Vec<Tokens>,
    adapters: Vec<Adapter>,
}

/// Gives every layer that shares an embedding's weight what that embedding shares at present: its
/// trained rows, and adapters of a configuration with `ensure_weight_tying`, transposed: A of the
/// head is Bᵀ of the embedding and B is Aᵀ. They are views of the embedding's variables, so that
/// there is one of each and gradients add up.
pub(crate) fn retie<M: LoraModule>(model: &mut M) -> Result<()> {
    let mut shared: HashMap<TensorId, Shared> = HashMap::new();
    each_layer(model, |_, layer| {
        let Some(layer) = layer.adapted().filter(|layer| layer.is_lookup()) else {
            return;
        };
        let adapters = layer.parts().2;
        let ties = adapters.iter().filter(|adapter| adapter.tie == Tie::Shares);
        let of_layer = Shared {
            tokens: adapters.tokens.clone(),
            adapters: ties.cloned().collect(),
        };
        if !of_layer.tokens.is_empty() || !of_layer.adapters.is_empty() {
            shared.insert(layer.unmerged_weight().id(), of_layer);
        }
    });
    let mut result = Ok(());
    each_layer_mut(model, |_, layer| {
        let Some(layer) = layer.adapted_mut().filter(|layer| !layer.is_lookup()) else {
            return;
        };
        let id = layer.unmerged_weight().id();
        let adapters = layer.parts_mut().2;
        adapters.list.retain(|adapter| adapter.tie != Tie::Shared);
        let none = Shared::default();
        let of_embedding = shared.get(&id).unwrap_or(&none);
        adapters.tokens = of_embedding.tokens.clone();
        for adapter in &of_embedding.adapters {
            match transposed(adapter) {
                Ok(tied) => {
                    adapters.list.retain(|own| own.name != tied.name);
                    adapters.list.push(tied);
                }
                Err(error) => result = Err(error),
            }
        }
    });
    result
}

fn transposed(adapter: &Adapter) -> Result<Adapter> {
    Ok(Adapter {
        a: adapter.b.t()?,
        b: adapter.a.t()?,
        tie: Tie::Shared,
        ..adapter.clone()
    })
}

/// How an adapter is tied to that of another layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tie {
    #[default]
    None,
    /// An embedding's, which acts on the heads that share its weight.
    Shares,
    /// A head's, which is a view of the embedding's.
    Shared,
}

/// What keeps `ensure_weight_tying` from having its effect.
pub(crate) fn problems<M: LoraModule>(model: &M, name: &str) -> Vec<String> {
    let (mut embeddings, mut problems) = (HashMap::new(), Vec::new());
    each_layer(model, |path, layer| {
        let copied = layer.copies().is_some_and(|copies| copies.has(name));
        let Some(layer) = layer.adapted().filter(|layer| layer.is_lookup()) else {
            return;
        };
        if copied {
            problems.push(format!(
                "ensure_weight_tying: `{path}` is trained in full, which unties it; train some rows \
                 with trainable_token_indices, or give it an adapter"
            ));
        }
        let adapters = layer.parts().2;
        let has_any = adapters.get(name).is_some() || adapters.tokens_of(name).is_some();
        embeddings.insert(layer.unmerged_weight().id(), (path.to_string(), has_any));
    });
    let mut tied = false;
    each_layer(model, |path, layer| {
        let Some(layer) = layer.adapted().filter(|layer| !layer.is_lookup()) else {
            return;
        };
        if let Some((embedding, has_any)) = embeddings.get(&layer.unmerged_weight().id()) {
            tied |= has_any;
            if layer.parts().2.get(name).is_some() && !has_any {
                problems.push(format!(
                    "ensure_weight_tying: `{path}` shares the weight of `{embedding}`: make that a \
                     target, and both are adapted"
                ));
            }
        }
    });
    if !tied && problems.is_empty() {
        problems.push("ensure_weight_tying: no target shares its weight with a head".into());
    }
    problems
}
