//! The walk over a model's layers, with the path of each.

use crate::adapter::places::PLACED;
use crate::config::Kind;
use crate::path::Path;
use crate::traits::Tuples;
use crate::{Layer, LoraModule};
use candle_core::Tensor;
use std::sync::Arc;

/// A walk over the layers of a LoRA model, handed to [`LoraModule::visit`].
///
/// An implementation names its parts in the order of the model's parameters:
///
/// ```
/// use lora::{Cursor, layers::LoraLinear};
///
/// struct Gated { gate: LoraLinear, up: LoraLinear }
///
/// impl Gated {
///     fn visit(&self, cursor: &mut Cursor<'_>) {
///         cursor.field("gate_proj", &self.gate);
///         cursor.field("up_proj", &self.up);
///     }
/// }
/// ```
pub struct Cursor<'a> {
    path: Path,
    is_routed: bool,
    visit: &'a mut Visit<'a>,
}

/// What a walk calls with each layer, the layer's path, and whether the layer is routed.
type Visit<'a> = dyn FnMut(&str, &dyn Layer, bool) + 'a;

impl<'a> Cursor<'a> {
    pub(crate) fn new(visit: &'a mut Visit<'a>) -> Self {
        Self {
            path: Path::default(),
            is_routed: false,
            visit,
        }
    }

    /// Walks a part of the model under this name.
    pub fn field<M: LoraModule>(&mut self, name: &str, module: &M) {
        let length = self.path.push(name);
        module.visit(self);
        self.path.truncate(length);
    }

    /// Walks the tuples of a field whose parts have attributes, each by `walk`, at the tuple's path.
    #[doc(hidden)]
    pub fn parts<T: Tuples>(&mut self, name: &str, field: &T, walk: impl Fn(&mut Self, &T::Tuple)) {
        let length = self.path.push(name);
        let walked = field.map("", &mut |path, tuple| {
            let length = self.path.push(path);
            walk(self, tuple);
            self.path.truncate(length);
            Ok(())
        });
        debug_assert!(walked.is_ok(), "a walk does not fail");
        self.path.truncate(length);
    }

    /// Walks parts of which a batch may reach only some, such as a mixture's experts:
    /// `#[lora(routed)]`. [`LoraModule::backward`] gives a parameter there a gradient of zeros where
    /// the batch did not reach it.
    pub fn routed(&mut self, walk: impl FnOnce(&mut Self)) {
        let outer = std::mem::replace(&mut self.is_routed, true);
        walk(self);
        self.is_routed = outer;
    }

    /// Shows a layer at the present path. Called by layers, the leaves of the walk.
    pub fn layer(&mut self, layer: &dyn Layer) {
        let place = place(layer);
        let path = place.as_deref().unwrap_or(self.path.as_str());
        (self.visit)(path, layer, self.is_routed);
    }
}

/// The path that the checkpoint gives a layer, if it is known.
fn place(layer: &dyn Layer) -> Option<Arc<str>> {
    match layer.copies() {
        Some(copies) => copies.path.clone(),
        None => PLACED.name_of(field(layer)?),
    }
}

/// The tensor, if the layer is a tensor that is a field, which has no room for its path.
fn field(layer: &dyn Layer) -> Option<&Tensor> {
    match layer.kind() {
        Kind::Tensor if layer.copies().is_none() => {
            layer.params().first().map(|param| param.tensor)
        }
        _ => None,
    }
}

/// A walk that may change the layers, handed to [`LoraModule::visit_mut`]; the twin of [`Cursor`].
pub struct CursorMut<'a> {
    path: Path,
    visit: &'a mut dyn FnMut(&str, &mut dyn Layer),
}

impl<'a> CursorMut<'a> {
    pub(crate) fn new(visit: &'a mut dyn FnMut(&str, &mut dyn Layer)) -> Self {
        let path = Path::default();
        Self { path, visit }
    }

    /// Walks a part of the model under this name.
    pub fn field<M: LoraModule>(&mut self, name: &str, module: &mut M) {
        let length = self.path.push(name);
        module.visit_mut(self);
        self.path.truncate(length);
    }

    /// Walks the tuples of a field, as [`Cursor`] does.
    #[doc(hidden)]
    pub fn parts<T: Tuples>(
        &mut self,
        name: &str,
        field: &mut T,
        walk: impl Fn(&mut Self, &mut T::Tuple),
    ) {
        let length = self.path.push(name);
        field.each_mut("", &mut |path, tuple| {
            let length = self.path.push(path);
            walk(self, tuple);
            self.path.truncate(length);
        });
        self.path.truncate(length);
    }

    /// Walks parts of which a batch may reach only some, as [`Cursor::routed`].
    pub fn routed(&mut self, walk: impl FnOnce(&mut Self)) {
        walk(self);
    }

    /// Shows a layer at the present path. Called by layers, the leaves of the walk.
    pub fn layer(&mut self, layer: &mut dyn Layer) {
        let place = place(layer);
        let before = field(layer).map(Tensor::id);
        (self.visit)(place.as_deref().unwrap_or(self.path.as_str()), layer);
        if let (Some(before), Some(tensor)) = (before, field(layer)) {
            PLACED.replace(before, tensor);
        }
    }
}
