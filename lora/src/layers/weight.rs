//! A bare weight that a model computes with by itself, such as those of a mixture of experts.

use crate::adapter::{Access, Adapted, Adapters, Form, LayerParts, LayerPartsMut};
use crate::config::Kind;
use crate::{
    Builder, Cursor, CursorMut, LoraConfig, LoraLayer, LoraModel, LoraModule, Result, Settings,
};
use candle_core::Tensor;

/// A weight without a layer around it, (out, in). The experts of a mixture may share one tensor,
/// (experts, out, in): PEFT's `target_parameters`.
///
/// Its path is that of its field, without `.weight`. The model asks for the tensor with
/// [`tensor`](Self::tensor) and computes with it. The LoRA counterpart gives the tensor with its
/// updates.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use lora::layers::Weight;
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// #[derive(Clone, Debug, LoraModel)]
/// struct Experts {
///     #[lora(rank)]
///     down_proj: Weight, // (experts, out, in)
/// }
///
/// #[lora::forward]
/// impl Experts {
///     /// (experts, tokens, in) to (experts, tokens, out)
///     fn forward(&self, xs: &Tensor) -> Result<Tensor> {
///         xs.matmul(&self.down_proj.tensor()?.t()?)
///     }
/// }
///
/// let weight = Tensor::randn(0f32, 1., (4, 3, 2), &Device::Cpu)?;
/// let experts = Experts { down_proj: Weight::new(weight)? };
/// let model = experts.to_lora(&LoraConfig::new(1))?;
/// assert_eq!(model.trainable_vars()[0].dims(), [4, 2]);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Weight {
    tensor: Tensor,
    is_transposed: bool,
}

impl Weight {
    /// A weight of shape (out, in) or (experts, out, in).
    ///
    /// # Errors
    /// If the tensor has another number of dimensions.
    pub fn new(tensor: Tensor) -> Result<Self> {
        Self::with(tensor, false)
    }

    /// A weight of shape (in, out) or (experts, in, out): PEFT's `is_transposed`.
    ///
    /// # Errors
    /// If the tensor has another number of dimensions.
    pub fn transposed(tensor: Tensor) -> Result<Self> {
        Self::with(tensor, true)
    }

    fn with(tensor: Tensor, is_transposed: bool) -> Result<Self> {
        if !matches!(tensor.rank(), 2 | 3) {
            let message = format!(
                "a weight has two dimensions, or three for experts, not {:?}",
                tensor.dims()
            );
            return Err(crate::Error::layer("", message));
        }
        Ok(Self {
            tensor,
            is_transposed,
        })
    }

    /// The weight.
    ///
    /// # Errors
    /// None here. The LoRA counterpart's method can fail, and both are called in the same way.
    pub fn tensor(&self) -> candle_core::Result<Tensor> {
        Ok(self.tensor.clone())
    }
}

/// A [`Weight`] with low-rank updates: W + s·B·A, for each expert its own.
///
/// With E experts A is (E·r, in) and B (out, r·E); E is 1 for a weight of two dimensions. Expert e
/// has the rows e·r.. of A and the columns e, e + E, e + 2·E, .. of B: PEFT's layout, whichever way
/// the weight is stored. A bare weight takes no dropout, no bias on B and no DoRA. The rows of one
/// batch cannot differ in their adapter.
#[derive(Clone, Debug)]
pub struct LoraWeight {
    weight: Tensor,
    is_transposed: bool,
    adapters: Adapters,
}

impl LoraWeight {
    /// A weight with one fresh adapter. The base weight is shared.
    ///
    /// # Errors
    /// If the configuration is invalid or asks for something that a bare weight cannot have.
    pub fn new(base: &Weight, config: &LoraConfig) -> Result<Self> {
        base.to_lora(config)
    }

    /// The weight with the active updates, in its own shape and dtype, to compute with. In training
    /// the gradient reaches A and B.
    ///
    /// # Errors
    /// If the device cannot compute the updates, or in a view for mixed batches.
    pub fn tensor(&self) -> candle_core::Result<Tensor> {
        self.adapted_weight()
    }

    /// The layer's adapters.
    pub fn adapters(&self) -> &Adapters {
        &self.adapters
    }
}

impl LoraModel for Weight {
    type Lora = LoraWeight;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraWeight> {
        let layer = LoraWeight {
            weight: cx.parameter(&self.tensor),
            is_transposed: self.is_transposed,
            adapters: cx.adapters(),
        };
        cx.layer(layer)
    }
}

impl LoraLayer for Weight {}

impl LoraModule for LoraWeight {
    type Base = Weight;

    fn to_base(&self) -> Result<Weight> {
        let (weight, _) = self.base_parts()?;
        Weight::with(weight, self.is_transposed)
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.layer(self);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.layer(self);
    }
}

impl Adapted for LoraWeight {
    fn layer_kind(&self) -> Kind {
        Kind::Weight
    }

    fn form(&self) -> Form {
        match (self.weight.dims(), self.is_transposed) {
            (&[count, ..], transposed) if self.weight.rank() == 3 => {
                Form::Experts { count, transposed }
            }
            (_, true) => Form::Transposed,
            (_, false) => Form::Linear,
        }
    }

    fn parts(&self) -> LayerParts<'_> {
        LayerParts {
            weight: &self.weight,
            bias: None,
            adapters: &self.adapters,
        }
    }

    fn parts_mut(&mut self, _: Access) -> LayerPartsMut<'_> {
        LayerPartsMut {
            weight: &mut self.weight,
            bias: None,
            adapters: &mut self.adapters,
        }
    }

    fn weight_name(&self) -> &'static str {
        ""
    }

    fn refuses(&self, settings: &Settings, config: &LoraConfig) -> Option<String> {
        let problems = [
            (settings.dropout != 0.0, "dropout"),
            (config.lora_bias, "a bias on B (lora_bias)"),
            (config.use_dora, "DoRA"),
        ];
        let (_, problem) = problems.into_iter().find(|(set, _)| *set)?;
        Some(format!("a bare weight takes no {problem}, as in PEFT"))
    }
}
