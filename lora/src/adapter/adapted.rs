//! [`Adapted`]: a layer that may carry adapters.

use super::{Access, Adapter, Adapters, Copies, Form, Layer, Param, Role, merging, updates};
use crate::config::Kind;
use crate::{LoraConfig, Result, Settings};
use candle_core::{Shape, Tensor};
use std::fmt::Debug;

/// A layer that may carry adapters: its weight, its bias, its adapters, and how the weight is
/// stored.
///
/// The walk over a model reaches such a layer through [`Layer::adapted`]. A layer of your own can
/// implement the trait. It is then adapted, trained, merged and saved like this crate's layers:
///
/// ```
/// use candle_core::{D, Device, Module, Tensor};
/// use lora::{
///     Access, Adapted, Adapters, Builder, Cursor, CursorMut, Form, Kind, LayerParts,
///     LayerPartsMut, LoraConfig, LoraLayer, LoraModel, LoraModule, Result,
/// };
///
/// /// Scores the angle between the input and each class: y = x·Ŵᵀ, the rows of Ŵ of length 1.
/// #[derive(Clone, Debug)]
/// struct Cosine {
///     weight: Tensor,
/// }
///
/// impl Cosine {
///     fn score(xs: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
///         let norms = weight.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
///         xs.matmul(&weight.broadcast_div(&norms)?.t()?)
///     }
/// }
///
/// #[derive(Clone, Debug)]
/// struct LoraCosine {
///     weight: Tensor,
///     adapters: Adapters,
/// }
///
/// impl Module for LoraCosine {
///     fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
///         Cosine::score(xs, &self.adapted_weight()?)
///     }
/// }
///
/// impl LoraModel for Cosine {
///     type Lora = LoraCosine;
///
///     fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraCosine> {
///         let (weight, adapters) = (cx.parameter(&self.weight), cx.adapters());
///         cx.layer(LoraCosine { weight, adapters })
///     }
/// }
///
/// impl LoraLayer for Cosine {}
///
/// impl LoraModule for LoraCosine {
///     type Base = Cosine;
///
///     fn to_base(&self) -> Result<Cosine> {
///         let (weight, _) = self.base_parts()?;
///         Ok(Cosine { weight })
///     }
///
///     fn visit(&self, cursor: &mut Cursor<'_>) {
///         cursor.layer(self);
///     }
///
///     fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
///         cursor.layer(self);
///     }
/// }
///
/// impl Adapted for LoraCosine {
///     fn layer_kind(&self) -> Kind {
///         Kind::Other("Cosine")
///     }
///
///     fn form(&self) -> Form {
///         Form::Linear
///     }
///
///     fn parts(&self) -> LayerParts<'_> {
///         LayerParts { weight: &self.weight, bias: None, adapters: &self.adapters }
///     }
///
///     fn parts_mut(&mut self, _: Access) -> LayerPartsMut<'_> {
///         LayerPartsMut { weight: &mut self.weight, bias: None, adapters: &mut self.adapters }
///     }
/// }
///
/// let weight = Tensor::new(&[[0f32, 4.], [2., 0.]], &Device::Cpu)?;
/// let mut model = Cosine { weight }.to_lora(&LoraConfig::new(1))?;
/// let xs = Tensor::new(&[[3f32, 5.]], &Device::Cpu)?;
/// assert_eq!(model.forward(&xs)?.to_vec2::<f32>()?, [[5.0, 3.0]]);
/// let grads = model.backward(&model.forward(&xs)?.sqr()?.sum_all()?)?;
/// assert!(grads.get(&model.trainable_vars()[1]).is_some());
/// model.merge()?;
/// # Ok::<(), lora::Error>(())
/// ```
pub trait Adapted: Debug {
    /// The layer's kind.
    fn layer_kind(&self) -> Kind;

    /// How the weight is stored.
    fn form(&self) -> Form;

    /// The weight (merged, while adapters are merged), the bias and the adapters.
    fn parts(&self) -> LayerParts<'_>;

    /// The weight (merged, while adapters are merged), the bias and the adapters, to be changed.
    ///
    /// Only this crate can call this method, as only this crate makes an [`Access`].
    fn parts_mut(&mut self, access: Access) -> LayerPartsMut<'_>;

    /// True for an embedding, whose inputs are indices.
    fn is_lookup(&self) -> bool {
        false
    }

    /// Why the layer cannot take an adapter with these settings; `None` if it can.
    fn refuses(&self, _settings: &Settings, _config: &LoraConfig) -> Option<String> {
        None
    }

    /// The weight's name in the layer; empty for a bare weight.
    fn weight_name(&self) -> &'static str {
        "weight"
    }

    /// The weight. While adapters are merged, this is the merged weight.
    ///
    /// Where the weight is quantised, [`Adapters::blocks`] holds the values. The tensor then has the
    /// weight's shape and the dtype that the layer computes in, takes no memory, and all of its values
    /// are NaN. [`adapted_weight`](Self::adapted_weight) dequantises.
    fn weight(&self) -> &Tensor {
        self.parts().weight
    }

    /// The bias.
    fn bias(&self) -> Option<&Tensor> {
        self.parts().bias
    }

    /// The layer's adapters.
    fn adapters(&self) -> &Adapters {
        self.parts().adapters
    }

    /// The shapes of A and B for this rank.
    fn shapes(&self, rank: usize) -> (Shape, Shape) {
        self.form().shapes(self.unmerged_weight().dims(), rank)
    }

    /// The smaller side of the weight as a matrix. A higher rank cannot express more updates.
    fn largest_rank(&self) -> usize {
        self.form().largest_rank(self.unmerged_weight().dims())
    }

    /// What an adapter adds to the weight, s·B·A, in the merged weight's shape and the adapter's
    /// dtype.
    ///
    /// # Errors
    /// If candle cannot multiply on the device at hand.
    fn delta(&self, adapter: &Adapter) -> Result<Tensor> {
        let delta = self.form().delta(&adapter.a, &adapter.b, adapter.scaling());
        Ok(delta?)
    }

    /// The weight without merged adapters. Where the weight is quantised, see [`weight`](Self::weight).
    fn unmerged_weight(&self) -> &Tensor {
        let LayerParts {
            weight, adapters, ..
        } = self.parts();
        let merged = adapters.merged.as_ref();
        merged.map_or(weight, |merged| &merged.weight)
    }

    /// The weight with every active adapter, in the weight's dtype, for the forward pass. In
    /// training the gradient reaches the adapters. Dropout does not act here, only on inputs.
    ///
    /// # Errors
    /// In a view for mixed batches, whose rows share no weight, and if candle cannot multiply on
    /// the device at hand.
    fn adapted_weight(&self) -> candle_core::Result<Tensor>
    where
        Self: Sized,
    {
        updates::adapted_weight(self)
    }

    /// Weight and bias for a base layer, with all merged and all active adapters in them. Further
    /// training does not reach these tensors.
    ///
    /// # Errors
    /// If a merged weight is not finite, or an adapter has a bias on B and the layer has no bias.
    fn base_parts(&self) -> Result<(Tensor, Option<Tensor>)>
    where
        Self: Sized,
    {
        merging::base_parts(self)
    }
}

/// The parts of a layer that may carry adapters.
#[derive(Clone, Copy, Debug)]
pub struct LayerParts<'a> {
    /// The weight. While adapters are merged, this is the merged weight.
    pub weight: &'a Tensor,
    /// The bias.
    pub bias: Option<&'a Tensor>,
    /// The layer's adapters.
    pub adapters: &'a Adapters,
}

/// The parts of a layer that may carry adapters, to be changed.
#[derive(Debug)]
pub struct LayerPartsMut<'a> {
    /// The weight. While adapters are merged, this is the merged weight.
    pub weight: &'a mut Tensor,
    /// The bias.
    pub bias: Option<&'a mut Tensor>,
    /// The layer's adapters.
    pub adapters: &'a mut Adapters,
}

/// Access to the parts of an adapted layer that only this crate changes.
pub(crate) trait AdaptedMut: Adapted {
    fn adapters_mut(&mut self) -> &mut Adapters {
        self.parts_mut(Access::new()).adapters
    }

    fn weight_mut(&mut self) -> &mut Tensor {
        self.parts_mut(Access::new()).weight
    }
}

impl<T: Adapted + ?Sized> AdaptedMut for T {}

impl<T: Adapted> Layer for T {
    fn kind(&self) -> Kind {
        self.layer_kind()
    }

    fn params(&self) -> Vec<Param<&Tensor>> {
        let LayerParts {
            weight,
            bias,
            adapters,
        } = self.parts();
        let mut params = Param::weight_and_bias(weight, bias);
        params[0].name = self.weight_name().into();
        let of_lookup = self.is_lookup();
        for (adapter, part, tensor) in adapters.tensors() {
            let name = part.name(of_lookup, adapter);
            params.push(Param::new(name, Role::Adapter(part), tensor));
        }
        params
    }

    fn params_mut(&mut self, access: Access) -> Vec<Param<&mut Tensor>> {
        // The names come first: they need a shared borrow, the tensors an exclusive one.
        let names = self.params().into_iter();
        let names: Vec<_> = names.map(|param| (param.name, param.role)).collect();
        let LayerPartsMut {
            weight,
            bias,
            adapters,
        } = self.parts_mut(access);
        let mut tensors = vec![weight];
        tensors.extend(bias);
        tensors.extend(adapters.tensors_mut());
        let params = names.into_iter().zip(tensors);
        let params = params.map(|((name, role), tensor)| Param::new(name, role, tensor));
        params.collect()
    }

    fn set_training(&mut self, training: bool) {
        self.adapters_mut().training = training;
    }

    fn copies(&self) -> Option<&Copies> {
        Some(&self.adapters().copies)
    }

    fn copies_mut(&mut self, access: Access) -> Option<&mut Copies> {
        Some(&mut self.parts_mut(access).adapters.copies)
    }

    fn adapted(&self) -> Option<&dyn Adapted> {
        Some(self)
    }

    fn adapted_mut(&mut self) -> Option<&mut dyn Adapted> {
        Some(self)
    }
}
