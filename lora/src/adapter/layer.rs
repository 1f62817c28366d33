//! [`Layer`]: a leaf of a LoRA model, as the walk sees it, and the [`Param`]s of a leaf.

use super::{Access, Adapted, Copies, Part};
use crate::config::Kind;
use candle_core::Tensor;
use std::fmt::Debug;

/// A leaf of a LoRA model: a layer that holds parameters.
///
/// The layers of [`lora::layers`](crate::layers) and [`Tensor`] implement this trait. A parameter
/// is trainable exactly when its tensor is a variable ([`Tensor::is_variable`]).
pub trait Layer: Debug {
    /// The layer's kind.
    fn kind(&self) -> Kind;

    /// The parameters, in the order in which they are listed and saved.
    fn params(&self) -> Vec<Param<&Tensor>>;

    /// The parameters, to be replaced. The order is that of [`params`](Self::params).
    ///
    /// Only this crate can call this method, as only this crate makes an [`Access`].
    fn params_mut(&mut self, access: Access) -> Vec<Param<&mut Tensor>>;

    /// Switches between training (`true`) and evaluation, where no graph is recorded.
    fn set_training(&mut self, _training: bool) {}

    /// The adapters' copies of the layer's own parameters. `None` for a layer that has no room for
    /// copies: only one adapter can train such a layer.
    fn copies(&self) -> Option<&Copies> {
        None
    }

    /// The adapters' copies of the layer's own parameters, to be changed.
    fn copies_mut(&mut self, _: Access) -> Option<&mut Copies> {
        None
    }

    /// The layer as [`Adapted`], if it may carry adapters.
    fn adapted(&self) -> Option<&dyn Adapted> {
        None
    }

    /// The layer as [`Adapted`], if it may carry adapters, to be changed.
    fn adapted_mut(&mut self) -> Option<&mut dyn Adapted> {
        None
    }
}

/// A parameter: its name in its layer, its role and its tensor (`&Tensor` or `&mut Tensor`).
#[derive(Clone, Debug)]
pub struct Param<T> {
    /// The name in the layer: `weight`, `lora_A.default.weight`; empty where a tensor is a field.
    pub name: String,
    /// What the parameter is for.
    pub role: Role,
    /// The parameter's values.
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

    /// The parameters `weight` and, if the layer has one, `bias`.
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
    /// State of the base model that is no parameter, such as a batch norm's running statistics. It
    /// is moved and transferred, but neither counted nor trained.
    Buffer,
    /// A parameter of an adapter.
    Adapter(Part),
}
