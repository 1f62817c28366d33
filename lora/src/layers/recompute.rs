//! A part of a model whose inner values can be computed anew in the backward pass.

use crate::{Builder, Cursor, CursorMut, LoraModel, LoraModule, Result, checkpoint};
use candle_core::Tensor;
use candle_nn::Module;
use std::ops::{Deref, DerefMut};

/// A part of a model whose inner values may be computed anew in the backward pass instead of being
/// kept. [`LoraConfig::recompute`](crate::LoraConfig::recompute) switches this on, by path.
///
/// In the base model it is the part itself. The LoRA model has a [`LoraRecompute`], which runs the
/// part through [`checkpoint`] when its path is named. It adds nothing to paths.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::Linear;
/// use lora::{LoraConfig, LoraModel, LoraModule, layers::Recompute};
///
/// #[derive(Clone, Debug, LoraModel)]
/// struct Net {
///     #[lora(rank)]
///     blocks: Vec<Recompute<Linear>>,
/// }
///
/// let weight = Tensor::ones((2, 2), DType::F32, &Device::Cpu)?;
/// let net = Net { blocks: vec![Linear::new(weight, None).into(); 3] };
/// let model = net.to_lora(&LoraConfig::new(1).recompute(["blocks.0", "blocks.1"]))?;
/// let on: Vec<bool> = model.blocks.iter().map(|block| block.recomputes()).collect();
/// assert_eq!(on, [true, true, false]);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Recompute<M>(M);

impl<M> Recompute<M> {
    /// A part that can be switched.
    pub fn new(part: M) -> Self {
        Self(part)
    }

    /// The part.
    pub fn into_inner(self) -> M {
        self.0
    }

    /// Whether inner values are computed anew: never in a base model.
    pub fn recomputes(&self) -> bool {
        false
    }

    /// Runs the part by `f`, for a part whose forward pass takes more than its input.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn forward_with<C>(
        &self,
        xs: &Tensor,
        context: &C,
        f: impl Fn(&M, &Tensor, &C) -> candle_core::Result<Tensor> + Send + Sync + 'static,
    ) -> candle_core::Result<Tensor> {
        f(&self.0, xs, context)
    }
}

impl<M> From<M> for Recompute<M> {
    fn from(part: M) -> Self {
        Self(part)
    }
}

impl<M> Deref for Recompute<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.0
    }
}

impl<M: Module> Module for Recompute<M> {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.0.forward(xs)
    }
}

/// The LoRA counterpart of [`Recompute`].
#[derive(Clone, Debug)]
pub struct LoraRecompute<L> {
    part: L,
    recompute: bool,
}

impl<L> LoraRecompute<L> {
    /// Whether inner values are computed anew.
    pub fn recomputes(&self) -> bool {
        self.recompute
    }

    /// Switches the recomputation on or off.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }
}

impl<L: Clone + Send + Sync + 'static> LoraRecompute<L> {
    /// Runs the part by `f`, for a part whose forward pass takes more than its input. Nothing in the
    /// context gets a gradient.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn forward_with<C: Clone + Send + Sync + 'static>(
        &self,
        xs: &Tensor,
        context: &C,
        f: impl Fn(&L, &Tensor, &C) -> candle_core::Result<Tensor> + Send + Sync + 'static,
    ) -> candle_core::Result<Tensor> {
        if !self.recompute {
            return f(&self.part, xs, context);
        }
        let (part, context) = (self.part.clone(), context.clone());
        checkpoint(xs, move |xs| f(&part, xs, &context))
    }
}

impl<L> Deref for LoraRecompute<L> {
    type Target = L;

    fn deref(&self) -> &L {
        &self.part
    }
}

impl<L> DerefMut for LoraRecompute<L> {
    fn deref_mut(&mut self) -> &mut L {
        &mut self.part
    }
}

impl<L: Module + Clone + Send + Sync + 'static> Module for LoraRecompute<L> {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.forward_with(xs, &(), |part, xs, ()| part.forward(xs))
    }
}

impl<M: LoraModel> LoraModel for Recompute<M> {
    type Lora = LoraRecompute<M::Lora>;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<Self::Lora> {
        // The part comes first: its layers' names say what the part is called.
        let part = self.0.adapt(cx)?;
        Ok(LoraRecompute {
            recompute: cx.recomputes()?,
            part,
        })
    }
}

impl<M: crate::LoraLayer> crate::LoraLayer for Recompute<M> {}

impl<L: LoraModule> LoraModule for LoraRecompute<L> {
    type Base = Recompute<L::Base>;

    fn to_base(&self) -> Result<Self::Base> {
        Ok(Recompute(self.part.to_base()?))
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        self.part.visit(cursor);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        self.part.visit_mut(cursor);
    }
}
