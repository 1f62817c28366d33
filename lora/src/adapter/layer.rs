//! [`Layer`]: what the walk sees of a leaf, and the [`Param`]s it holds.

use super::{Access, Adapted, Copies, Part};
use crate::config::Kind;
use candle_core::Tensor;
use std::fmt::Debug;

/// A leaf of a LoRA model: a layer that holds parameters.
///
/// Implemented by the layers of [`lora::layers`](crate::layers) and by [`Tensor`]. A parameter is
/// trainable exactly when its tensor is a variable ([`Tensor::is_variable`]).
pub trait Layer: Debug {
    /// The layer's kind.
    fn kind(&self) -> Kind;

    /// The parameters, in the order in which they are listed and saved.
    fn params(&self) -> Vec<Param<&Tensor>>;

    /// The parameters, to be replaced. The order is that of [`params`](Self::params).
    ///
    /// Only this crate can call it, with a value that only this crate makes.
    fn params_mut(&mut self, access: Access) -> Vec<Param<&mut Tensor>>;

    /// Switches between training (`true`) and evaluation, where no graph is recorded.
    fn set_training(&mut self, _training: bool) {}

    /// The copies that adapters have of the layer's own parameters; `None` for a layer that has no
    /// room for them, which one adapter alone can train.
    fn copies(&self) -> Option<&Copies> {
        None
    }

    /// The copies that adapters have of the layer's own parameters, to be changed.
    fn copies_mut(&mut self, _: Access) -> Option<&mut Copies> {
        None
    }

    /// The layer as one that may carry adapters, if it is.
    fn adapted(&self) -> Option<&dyn Adapted> {
        None
    }

    /// The layer as one that may carry adapters, to be changed.
    fn adapted_mut(&mut self) -> Option<&mut dyn Adapted> {
        None
    }
}

/// A parameter: its name in its layer, its role and its tensor (`&Tensor` or `&mut Tensor`).
#[derive(Clone, Debug)]
pub struct Param<T> {
    /// Name in the layer: `weight`, `lora_A.default.weight`; empty where a tensor is a field.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its values.
    pub tensor: T,
}

impl<T> Param<T> {
    /// A parameter of a layer.
    pub fn new(name: impl Into<String>, role: Role, tensor: T) -> Self {
        let name = name.into();
        Self { name, role, tensor }
    }

    /// True for a parameter of an adapter.
    pub(crate) fn is_adapters(&self) -> bool {
        matches!(self.role, Role::Adapter(_))
    }

    /// `weight` and, where there is one, `bias`.
    pub(crate) fn weight_and_bias(weight: T, bias: Option<T>) -> Vec<Self> {
        let bias = bias.map(|bias| Self::new("bias", Role::Base, bias));
        [Self::new("weight", Role::Base, weight)]
            .into_iter()
            .chain(bias)
            .collect()
    }
}

/// What a parameter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// A parameter of the base model, frozen or trained in full.
    Base,
    /// A value of the base model that is state and no parameter, such as the running statistics of
    /// a batch norm. Moved and transferred, but neither counted nor trained.
    Buffer,
    /// A parameter of an adapter.
    Adapter(Part),
}
