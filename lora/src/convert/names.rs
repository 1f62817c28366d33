//! [`Names`]: the names by which a checkpoint knows a model's tensors, taken while the model loads.

use crate::adapter::places::{Owner, RECORDED};
use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use std::sync::Arc;

/// The names by which a checkpoint knows a model's tensors.
///
/// The fields of a model are seldom called what its checkpoint calls them: `blocks.0.attn.q` for
/// `model.layers.0.self_attn.q_proj`. Adapters are named for the checkpoint. A [`VarBuilder`] that
/// [`record`](Self::record) has wrapped remembers each tensor's name as the model loads. As long as this
/// value lives, every conversion of the model takes the layers' paths from those names: patterns,
/// adapters from other tools, and saved files then have the checkpoint's paths.
///
/// - A layer's path is the name of its weight without the last part.
/// - A layer whose tensors the constructor changed, such as a transposed weight, keeps its field's name,
///   below the path that the layers beside it have in the checkpoint.
/// - A layer that shares another layer's tensors, such as a tied head, keeps the path by its fields.
/// - `#[lora(name = "..")]` wins over the record, for the field and all below it.
/// - What [`to_base`](crate::LoraModule::to_base) merges, and what training replaces, keeps its name.
/// - A tensor that is a field has its own name, and the path of the struct where a layer shares it.
///
/// ```
/// use candle_core::{DType, Device, Result};
/// use candle_nn::{Linear, VarBuilder};
/// use lora::{LoraConfig, LoraModel, LoraModule, Names};
///
/// #[derive(LoraModel)]
/// struct Attention { q: Linear, v: Linear }
///
/// impl Attention {
///     fn load(vb: VarBuilder<'_>) -> Result<Self> {
///         Ok(Self {
///             q: candle_nn::linear(4, 4, vb.pp("self_attn.q_proj"))?,
///             v: candle_nn::linear(4, 4, vb.pp("self_attn.v_proj"))?,
///         })
///     }
/// }
///
/// let names = Names::new();
/// let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
/// let attention = Attention::load(names.record(vb).pp("model.layers.0"))?;
/// let model = attention.to_lora(&LoraConfig::new(2).target_modules(["q_proj"]))?;
/// let adapted = model.layer_status().into_iter().map(|layer| layer.name);
/// assert_eq!(adapted.collect::<Vec<_>>(), ["model.layers.0.self_attn.q_proj"]);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Names(Arc<Owner>);

impl Default for Names {
    fn default() -> Self {
        Self(RECORDED.owner())
    }
}

impl Names {
    /// No names yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same builder, which records the name of each tensor that it hands out. Names are whole: they
    /// begin with the builder's own prefix.
    pub fn record<'a>(&self, vb: VarBuilder<'a>) -> VarBuilder<'a> {
        let (dtype, device) = (vb.dtype(), vb.device().clone());
        let recording = Recording {
            prefix: vb.prefix(),
            vb,
            names: self.clone(),
        };
        VarBuilder::from_backend(Box::new(recording), dtype, device)
    }

    /// How many tensors have a name.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A backend that hands out the tensors of another builder and notes their names.
struct Recording<'a> {
    vb: VarBuilder<'a>,
    prefix: String,
    names: Names,
}

impl Recording<'_> {
    fn noted(&self, tensor: Tensor, name: &str) -> Tensor {
        let name = crate::path::join(&self.prefix, name);
        self.names.0.put(&tensor, name.into());
        tensor
    }

    /// The builder for this device.
    fn on(&self, device: &Device) -> VarBuilder<'_> {
        match self.vb.device().same_device(device) {
            true => self.vb.clone(),
            false => self.vb.clone().set_device(device.clone()),
        }
    }
}

impl SimpleBackend for Recording<'_> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let tensor = self
            .on(device)
            .get_with_hints_dtype(shape, name, init, dtype)?;
        Ok(self.noted(tensor, name))
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.on(device).get_unchecked_dtype(name, dtype)?;
        Ok(self.noted(tensor, name))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.vb.contains_tensor(name)
    }
}
