//! The parameters of a model, by path.

use crate::path::join;
use crate::traits::visit::{Cursor, CursorMut};
use crate::{Layer, LoraModule, Param, Result, Role};
use candle_core::{Tensor, Var};
use std::collections::HashSet;

/// A parameter of a model with its path. See [`LoraModule::named_params`].
#[derive(Clone, Debug)]
pub struct NamedParam {
    /// Dotted path: `layers.0.fc1.weight`, `layers.0.fc1.lora_A.default.weight`.
    pub path: String,
    /// How much of `path` is the path of the parameter's layer.
    layer: usize,
    /// What the parameter is for.
    pub role: Role,
    /// The values, which are shared with the model, not copied.
    pub tensor: Tensor,
    is_routed: bool,
}

impl NamedParam {
    /// True if the parameter is trained.
    pub fn is_trainable(&self) -> bool {
        self.tensor.is_variable()
    }

    /// True if the parameter belongs to a part that the model marks as routed: a batch may not reach
    /// the parameter.
    pub fn is_routed(&self) -> bool {
        self.is_routed
    }

    /// The path of the parameter's layer.
    pub fn layer(&self) -> &str {
        &self.path[..self.layer]
    }

    /// The parameter's name in its layer.
    pub fn name(&self) -> &str {
        self.path[self.layer..].trim_start_matches('.')
    }
}

pub(crate) fn named<M: LoraModule>(model: &M) -> Vec<NamedParam> {
    let mut params = Vec::new();
    model.visit(&mut Cursor::new(&mut |path, layer, is_routed| {
        for Param { name, role, tensor } in layer.params() {
            params.push(NamedParam {
                path: join(path, &name),
                layer: path.len(),
                role,
                tensor: tensor.clone(),
                is_routed,
            });
        }
    }));
    params
}

/// A variable of a model, with the path where the walk met it first.
pub(crate) struct Trainable {
    pub(crate) path: String,
    /// How much of `path` is the path of the layer.
    pub(crate) layer: usize,
    pub(crate) is_routed: bool,
    pub(crate) var: Var,
}

/// The variables in the order of the walk, each once.
pub(crate) fn trainable<M: LoraModule>(model: &M) -> Vec<Trainable> {
    let mut seen = HashSet::new();
    let params = named(model).into_iter();
    let params = params.filter(|param| param.is_trainable() && seen.insert(param.tensor.id()));
    let vars = params.filter_map(|param| {
        Some(Trainable {
            // `from_tensor` returns a variable as it is. It copies other tensors, which alone can fail.
            var: Var::from_tensor(&param.tensor).ok()?,
            path: param.path,
            layer: param.layer,
            is_routed: param.is_routed,
        })
    });
    vars.collect()
}

/// Calls `f` with each layer and its path, until `f` fails.
pub(crate) fn try_each_layer<M: LoraModule>(
    model: &M,
    mut f: impl FnMut(&str, &dyn Layer) -> Result<()>,
) -> Result<()> {
    let mut result = Ok(());
    each_layer(model, |path, layer| {
        if result.is_ok() {
            result = f(path, layer);
        }
    });
    result
}

/// Calls `f` with each layer, which it may change, and the layer's path, until `f` fails.
pub(crate) fn try_each_layer_mut<M: LoraModule>(
    model: &mut M,
    mut f: impl FnMut(&str, &mut dyn Layer) -> Result<()>,
) -> Result<()> {
    let mut result = Ok(());
    each_layer_mut(model, |path, layer| {
        if result.is_ok() {
            result = f(path, layer);
        }
    });
    result
}

/// Calls `f` with each layer and its path.
pub(crate) fn each_layer<M: LoraModule>(model: &M, mut f: impl FnMut(&str, &dyn Layer)) {
    model.visit(&mut Cursor::new(&mut |path, layer, _| f(path, layer)));
}

/// Calls `f` with each layer, which it may change, and the layer's path.
pub(crate) fn each_layer_mut<M: LoraModule>(
    model: &mut M,
    mut f: impl FnMut(&str, &mut dyn Layer),
) {
    model.visit_mut(&mut CursorMut::new(&mut f));
}
