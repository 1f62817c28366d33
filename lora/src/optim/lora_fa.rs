//! LoRA-FA: A is frozen, B follows the full gradient.

use super::adamw::Decay;
use super::pairs::{Pair, freeze_a, pairs};
use super::{AdamW, Group};
use crate::{Error, LoraModule, Result};
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use candle_nn::Optimizer;
use std::collections::HashSet;

/// Added to A·Aᵀ, as in PEFT.
const DAMPING: f64 = 1e-8;

/// LoRA-FA, <https://arxiv.org/abs/2308.03303>: trains B alone. A stays as it is. So neither the
/// gradient of A is kept, nor the input from which it would be computed.
///
/// The gradient g of B becomes s⁻²·g·(A·Aᵀ + 10⁻⁸)⁺, with the layer's scaling s: the step of B
/// that brings s·B·A closest to the step of the full weight. The update is that of AdamW as
/// transformers had it: betas 0.9 and 0.999, eps 10⁻⁶ before the bias correction, weight decay
/// after the update. What is trained beside adapters follows AdamW alone.
///
/// As PEFT's `create_lorafa_optimizer`, but without rounding to bf16. It also works with several
/// adapters, with convolutions and with trained vectors, where PEFT's fails.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::Linear;
/// use lora::optim::LoraFa;
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// let weight = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
/// let mut model = Linear::new(weight, None).to_lora(&LoraConfig::new(2))?;
/// let mut optimizer = LoraFa::new(&mut model, 1e-3, 0.0)?;
/// assert_eq!(model.trainable_vars().len(), 1); // B
/// let input = Tensor::ones((1, 3), DType::F32, &Device::Cpu)?;
/// let loss = model.forward(&input)?.sqr()?.sum_all()?;
/// optimizer.step(&model.backward(&loss)?)?;
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Debug)]
pub struct LoraFa {
    adamw: AdamW,
    /// Each with s⁻²·(A·Aᵀ + δ)⁺, which stays the same because A is frozen.
    pairs: Vec<(Pair, Tensor)>,
}

impl LoraFa {
    /// Freezes A in every adapter of the model. The optimiser is for all that is trained then.
    ///
    /// Make it after loading an adapter: it holds numbers computed from A.
    ///
    /// # Errors
    /// If a scaling is 0, no adapter is trained, or a number is out of range. The model then stays
    /// as it was.
    pub fn new<M: LoraModule>(model: &mut M, lr: f64, weight_decay: f64) -> Result<Self> {
        let mut trained = pairs(model);
        let frozen: HashSet<_> = trained.iter().map(|pair| pair.a.id()).collect();
        trained.retain(|pair| pair.b.is_variable());
        let mut problems: Vec<String> = (trained.iter())
            .filter(|pair| pair.scaling == 0.0)
            .map(|pair| format!("{}: the scaling is 0, so that B has no effect", pair.name()))
            .collect();
        if trained.is_empty() {
            problems
                .push("LoRA-FA trains the B of adapters, but no B of this model is trained".into());
        }
        if !problems.is_empty() {
            return Err(Error::Optimizer(problems));
        }
        let mut vars = model.trainable_vars();
        vars.retain(|var| !frozen.contains(&var.id()));
        let group = Group::new(&vars, lr).weight_decay(weight_decay);
        let adamw = AdamW::grouped(model, [group])?.eps(1e-6)?;
        let with_inverse = |pair: Pair| {
            let inverse = (pair.inverse_of_a(DAMPING)? * pair.scaling.powi(-2))?;
            Ok((pair, inverse))
        };
        let pairs = trained.into_iter().map(with_inverse);
        let pairs = pairs.collect::<Result<_>>()?;
        // Last, so that an error before leaves the model as it was.
        freeze_a(model)?;
        Ok(Self {
            adamw: adamw.order(Decay::DecayLast),
            pairs,
        })
    }

    /// The backward pass and one step. Every parameter of this optimiser must get a gradient.
    ///
    /// # Errors
    /// [`Error::NoGradient`], a loss that is not finite, and those of [`step`](Self::step).
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        let grads = self.adamw.backward(loss)?;
        self.step(&grads)
    }

    /// One step with the gradients of [`LoraModule::backward`].
    ///
    /// # Errors
    /// Those of candle, a gradient that is not finite, and a factor of the learning rate that is
    /// negative or not finite.
    pub fn step(&mut self, grads: &GradStore) -> Result<()> {
        let mut own = self.adamw.own(grads);
        for (pair, inverse) in &self.pairs {
            if let Some(grad) = own.remove(&pair.b) {
                own.insert(&pair.b, pair.precondition_b(&grad, inverse)?);
            }
        }
        Ok(self.adamw.step(&own)?)
    }

    /// The optimiser below: learning rate and state.
    pub fn adamw(&self) -> &AdamW {
        &self.adamw
    }

    /// The optimiser below, to set the learning rate or load its state.
    pub fn adamw_mut(&mut self) -> &mut AdamW {
        &mut self.adamw
    }
}
