//! A list of modules, one after the other.

use super::{AnyModule, LoraAnyModule};
use crate::{Builder, Cursor, CursorMut, LoraLayer, LoraModel, LoraModule, Result};
use candle_core::{Module, Tensor};
use std::fmt;
use std::fmt::Debug;
use std::sync::Arc;

/// Modules, one after the other, as [`candle_nn::Sequential`], whose layers can be adapted. Name this
/// type, and [`seq`], in place of candle's: the methods are the same.
///
/// Paths are those of PyTorch's `Sequential`: each module adds its index, `0.weight`. A closure takes
/// a place, too. A closure that holds layers hides them; [`add`](Self::add) the layers themselves.
/// A rank on a field of this type is for all layers in the list that take one.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{Activation, VarBuilder};
/// use lora::layers::{Sequential, seq};
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// #[derive(LoraModel)]
/// struct Net {
///     #[lora(rank)]
///     mlp: Sequential,
/// }
///
/// #[lora::forward]
/// impl Module for Net {
///     fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
///         self.mlp.forward(xs)
///     }
/// }
///
/// let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
/// let mlp = seq()
///     .add(candle_nn::linear(3, 8, vb.pp("mlp.0"))?)
///     .add(Activation::Silu)
///     .add_fn(|xs| xs * 2.0)
///     .add(candle_nn::linear(8, 2, vb.pp("mlp.3"))?);
/// let model = Net { mlp }.to_lora(&LoraConfig::new(1))?;
/// let adapted: Vec<_> = model.layer_status().into_iter().map(|layer| layer.name).collect();
/// assert_eq!(adapted, ["mlp.0", "mlp.3"]);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Sequential {
    layers: Vec<AnyModule>,
}

/// Creates a new empty [`Sequential`].
pub fn seq() -> Sequential {
    Sequential::default()
}

impl Sequential {
    /// Appends a module after all the present ones.
    #[allow(clippy::should_implement_trait, reason = "candle's name")]
    pub fn add<M>(mut self, layer: M) -> Self
    where
        M: LoraModel + Module + Send + Sync + 'static,
        M::Lora: Module + Send + Sync + 'static,
    {
        self.layers.push(AnyModule::new(layer));
        self
    }

    /// Appends a closure, which holds no layers, after all the present modules. Layers within a closure
    /// stay what they are: nothing lists, adapts or moves them.
    pub fn add_fn<F>(self, f: F) -> Self
    where
        F: 'static + Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync,
    {
        self.add(Closure(Arc::new(f)))
    }
}

/// The LoRA counterpart of [`Sequential`].
#[derive(Clone, Debug)]
pub struct LoraSequential {
    layers: Vec<LoraAnyModule>,
}

macro_rules! sequential {
    ($ty:ty) => {
        impl $ty {
            /// The number of modules.
            pub fn len(&self) -> i64 {
                self.layers.len() as i64
            }

            /// True if there are no modules.
            pub fn is_empty(&self) -> bool {
                self.layers.is_empty()
            }

            /// The output of each module, where each computes on that before.
            ///
            /// # Errors
            /// Those of the modules.
            pub fn forward_all(&self, xs: &Tensor) -> candle_core::Result<Vec<Tensor>> {
                let mut outputs: Vec<Tensor> = Vec::with_capacity(self.layers.len());
                for layer in &self.layers {
                    let next = layer.forward(outputs.last().unwrap_or(xs))?;
                    outputs.push(next);
                }
                Ok(outputs)
            }
        }

        impl Module for $ty {
            fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
                let mut layers = self.layers.iter();
                layers.try_fold(xs.clone(), |xs, layer| layer.forward(&xs))
            }
        }
    };
}

sequential!(Sequential);
sequential!(LoraSequential);

impl LoraModel for Sequential {
    type Lora = LoraSequential;
    const IS_LAYER: bool = true;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraSequential> {
        let layers = self.layers.adapt(cx)?;
        Ok(LoraSequential { layers })
    }
}

impl LoraLayer for Sequential {}

impl LoraModule for LoraSequential {
    type Base = Sequential;

    fn to_base(&self) -> Result<Sequential> {
        let layers = self.layers.to_base()?;
        Ok(Sequential { layers })
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        self.layers.visit(cursor);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        self.layers.visit_mut(cursor);
    }
}

type Call = dyn Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync;

/// A closure that holds no layers: its own LoRA type.
#[derive(Clone)]
struct Closure(Arc<Call>);

impl Debug for Closure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closure")
    }
}

impl Module for Closure {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        (self.0)(xs)
    }
}

super::plain::plain!(Closure);
