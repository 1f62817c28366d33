//! Linear layers of the user's own: structs that hold their weight as a tensor.

use super::LoraLinear;
use crate::adapter::Adapters;
use crate::{Builder, Cursor, CursorMut, LoraModel, LoraModule, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Linear, Module};
use std::fmt;
use std::fmt::Debug;

/// A linear layer of your own: a struct that computes y = x·Wᵀ + b with tensors among its fields.
///
/// `#[derive(LoraModel)]` with `#[lora(linear)]` implements the trait:
///
/// ```
/// use candle_core::{DType, Device, Module, Result, Tensor};
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// #[derive(Clone, LoraModel)]
/// #[lora(linear)]
/// struct Projection {
///     weight: Tensor,        // (out, in)
///     bias: Option<Tensor>,  // (out); may be a `Tensor`, or not be there
///     name: String,          // cloned
/// }
///
/// impl Module for Projection {  // without `#[lora::forward]`: the library computes the LoRA layer
///     fn forward(&self, xs: &Tensor) -> Result<Tensor> {
///         let ys = xs.matmul(&self.weight.t()?)?;
///         match &self.bias {
///             Some(bias) => ys.broadcast_add(bias),
///             None => Ok(ys),
///         }
///     }
/// }
///
/// let weight = Tensor::ones((3, 2), DType::F32, &Device::Cpu)?;
/// let layer = Projection { weight, bias: None, name: "q".into() };
/// let model = layer.to_lora(&LoraConfig::new(1))?;  // a LoraOwnLinear<Projection>
/// let xs = Tensor::ones((1, 2), DType::F32, &Device::Cpu)?;
/// assert_eq!(model.forward(&xs)?.to_vec2::<f32>()?, layer.forward(&xs)?.to_vec2::<f32>()?);
/// assert_eq!(model.to_base()?.name, "q");
/// # Ok::<(), lora::Error>(())
/// ```
pub trait OwnLinear: Clone {
    /// The weight, (out, in), and the bias, (out).
    fn tensors(&self) -> (&Tensor, Option<&Tensor>);

    /// The same, to be replaced.
    fn tensors_mut(&mut self) -> (&mut Tensor, Option<&mut Tensor>);
}

/// The LoRA counterpart of an [`OwnLinear`]: a [`LoraLinear`], and the other fields of the base layer.
#[derive(Clone)]
pub struct LoraOwnLinear<T> {
    linear: LoraLinear,
    /// The base layer, with empty tensors in the places of weight and bias.
    rest: T,
}

impl<T> LoraOwnLinear<T> {
    /// The weight, (out, in), with the active adapters in it: see [`LoraLinear::weight`].
    pub fn weight(&self) -> &Tensor {
        self.linear.weight()
    }

    /// The bias, (out), with the bias on B of active adapters.
    pub fn bias(&self) -> Option<&Tensor> {
        self.linear.bias()
    }

    /// The layer's adapters.
    pub fn adapters(&self) -> &Adapters {
        self.linear.adapters()
    }
}

impl<T> Debug for LoraOwnLinear<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LoraOwnLinear").field(&self.linear).finish()
    }
}

impl<T> Module for LoraOwnLinear<T> {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.linear.forward(xs)
    }
}

/// Converts the layer: what the derive's `adapt` calls.
#[doc(hidden)]
pub fn adapt<T: OwnLinear>(base: &T, cx: &mut Builder<'_>) -> Result<LoraOwnLinear<T>> {
    let (weight, bias) = base.tensors();
    let linear = Linear::new(weight.clone(), bias.cloned()).adapt(cx)?;
    // The model may move to another device or be merged: the tensors from before are not kept.
    let mut rest = base.clone();
    let nothing = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
    put(&mut rest, nothing.clone(), Some(nothing));
    Ok(LoraOwnLinear { linear, rest })
}

/// Puts tensors in their places. Without a place there is no bias.
fn put(layer: &mut impl OwnLinear, weight: Tensor, bias: Option<Tensor>) {
    let places = layer.tensors_mut();
    *places.0 = weight;
    if let (Some(place), Some(bias)) = (places.1, bias) {
        *place = bias;
    }
}

impl<T> LoraModule for LoraOwnLinear<T>
where
    T: OwnLinear + LoraModel<Lora = Self>,
{
    type Base = T;

    fn to_base(&self) -> Result<T> {
        let linear = self.linear.to_base()?;
        let mut base = self.rest.clone();
        put(&mut base, linear.weight().clone(), linear.bias().cloned());
        Ok(base)
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        self.linear.visit(cursor);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        self.linear.visit_mut(cursor);
    }
}

/// A field that holds the weight of an [`OwnLinear`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no tensor, so it is not the weight of a `#[lora(linear)]` layer",
    label = "not a `Tensor`",
    note = "the weight is a `Tensor` of shape (out, in); `linear(weight = ..)` names its field"
)]
pub trait WeightField {
    #[doc(hidden)]
    fn weight(&self) -> &Tensor;

    #[doc(hidden)]
    fn weight_mut(&mut self) -> &mut Tensor;
}

impl WeightField for Tensor {
    fn weight(&self) -> &Tensor {
        self
    }

    fn weight_mut(&mut self) -> &mut Tensor {
        self
    }
}

/// A field that holds the bias of an [`OwnLinear`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no tensor, so it is not the bias of a `#[lora(linear)]` layer",
    label = "neither a `Tensor` nor an `Option<Tensor>`",
    note = "the bias is a `Tensor` of shape (out), or an `Option` of one; `linear(bias = ..)` names its field"
)]
pub trait BiasField {
    #[doc(hidden)]
    fn bias(&self) -> Option<&Tensor>;

    #[doc(hidden)]
    fn bias_mut(&mut self) -> Option<&mut Tensor>;
}

impl BiasField for Tensor {
    fn bias(&self) -> Option<&Tensor> {
        Some(self)
    }

    fn bias_mut(&mut self) -> Option<&mut Tensor> {
        Some(self)
    }
}

impl BiasField for Option<Tensor> {
    fn bias(&self) -> Option<&Tensor> {
        self.as_ref()
    }

    fn bias_mut(&mut self) -> Option<&mut Tensor> {
        self.as_mut()
    }
}
