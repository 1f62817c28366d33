//! Modules of any type, and lists of them.

use crate::{Builder, Cursor, CursorMut, LoraLayer, LoraModel, LoraModule, Result};
use candle_core::{Module, Tensor};
use std::any::type_name;
use std::fmt;
use std::fmt::Debug;
use std::sync::Arc;

/// What an [`AnyModule`] knows of its module.
trait Part: Module + Send + Sync {
    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraAnyModule>;

    fn name(&self) -> &'static str;
}

impl<M> Part for M
where
    M: LoraModel + Module + Send + Sync + 'static,
    M::Lora: Module + Send + Sync + 'static,
{
    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraAnyModule> {
        let lora = LoraModel::adapt(self, cx)?;
        Ok(LoraAnyModule(Box::new(lora)))
    }

    fn name(&self) -> &'static str {
        type_name::<M>()
    }
}

/// A module of any type, whose layers can be adapted: for a field that would be a `Box<dyn Module>`,
/// which hides its layers. It adds nothing to paths.
///
/// The module's type has a LoRA counterpart, and both are [`Module`]s. A clone shares the module.
///
/// ```
/// use candle_core::{Device, Module, Tensor};
/// use candle_nn::{Activation, Linear};
/// use lora::layers::AnyModule;
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// #[derive(LoraModel)]
/// struct Head {
///     #[lora(rank)]
///     part: AnyModule,
/// }
///
/// let weight = Tensor::randn(0f32, 1., (3, 2), &Device::Cpu)?;
/// let heads = [
///     Head { part: AnyModule::new(Linear::new(weight, None)) },
///     Head { part: AnyModule::new(Activation::Silu) },
/// ];
/// let model = heads[0].to_lora(&LoraConfig::new(1))?;
/// assert_eq!(model.named_params()[0].path, "part.weight");
/// assert_eq!(heads[1].to_frozen()?.named_params().len(), 0);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone)]
pub struct AnyModule(Arc<dyn Part>);

impl AnyModule {
    /// A module whose layers can be adapted.
    pub fn new<M>(module: M) -> Self
    where
        M: LoraModel + Module + Send + Sync + 'static,
        M::Lora: Module + Send + Sync + 'static,
    {
        Self(Arc::new(module))
    }
}

impl Debug for AnyModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AnyModule").field(&self.0.name()).finish()
    }
}

impl Module for AnyModule {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.0.forward(xs)
    }
}

/// What a [`LoraAnyModule`] knows of its module.
trait LoraPart: Module + Debug + Send + Sync {
    fn boxed(&self) -> Box<dyn LoraPart>;

    fn to_base(&self) -> Result<AnyModule>;

    fn visit(&self, cursor: &mut Cursor<'_>);

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>);
}

impl<L> LoraPart for L
where
    L: LoraModule + Module + Send + Sync + 'static,
    L::Base: Module + Send + Sync + 'static,
{
    fn boxed(&self) -> Box<dyn LoraPart> {
        Box::new(self.clone())
    }

    fn to_base(&self) -> Result<AnyModule> {
        LoraModule::to_base(self).map(AnyModule::new)
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        LoraModule::visit(self, cursor);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        LoraModule::visit_mut(self, cursor);
    }
}

/// The LoRA counterpart of [`AnyModule`].
#[derive(Debug)]
pub struct LoraAnyModule(Box<dyn LoraPart>);

impl Clone for LoraAnyModule {
    fn clone(&self) -> Self {
        Self(self.0.boxed())
    }
}

impl Module for LoraAnyModule {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.0.forward(xs)
    }
}

impl LoraModel for AnyModule {
    type Lora = LoraAnyModule;
    const IS_LAYER: bool = true;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraAnyModule> {
        self.0.adapt(cx)
    }
}

impl LoraLayer for AnyModule {}

impl LoraModule for LoraAnyModule {
    type Base = AnyModule;

    fn to_base(&self) -> Result<AnyModule> {
        self.0.to_base()
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        self.0.visit(cursor);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        self.0.visit_mut(cursor);
    }
}
