//! Gradients of A and B in the metric of their product.

use super::AdamW;
use super::pairs::{Pair, pairs};
use crate::{Error, LoraModule, Result};
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use candle_nn::Optimizer;

/// AdamW on gradients in a Riemannian metric, <https://arxiv.org/abs/2402.02347>. The change of B·A
/// does not depend on how the product is split into B and A, up to `reg` and AdamW's moments.
///
/// The gradient of A becomes (BᵀB + reg)⁻¹·g, that of B g·(AAᵀ + reg)⁻¹, with the matrices as they
/// are before the step. As PEFT's `create_riemannian_optimizer`, it preconditions only linear
/// layers, and only where both matrices are trained. All else follows AdamW alone.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::Linear;
/// use lora::optim::{LoraPlus, Riemannian};
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// let weight = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
/// let model = Linear::new(weight, None).to_lora(&LoraConfig::new(2))?;
/// let adamw = LoraPlus::new(1e-4, 4.0).adamw(&model)?; // or any other
/// let mut optimizer = Riemannian::new(&model, adamw, 1e-2)?;
/// let input = Tensor::ones((1, 3), DType::F32, &Device::Cpu)?;
/// let loss = model.forward(&input)?.sqr()?.sum_all()?;
/// optimizer.step(&model.backward(&loss)?)?;
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Debug)]
pub struct Riemannian {
    adamw: AdamW,
    pairs: Vec<Pair>,
    reg: f64,
}

impl Riemannian {
    /// Wraps this AdamW. `reg` is added to the diagonals before the inversion; PEFT uses 10⁻².
    ///
    /// # Errors
    /// If `reg` is negative or not finite, or no linear layer has an adapter that is trained.
    pub fn new<M: LoraModule>(model: &M, adamw: AdamW, reg: f64) -> Result<Self> {
        let mut problems = Vec::new();
        if !(reg >= 0.0 && reg.is_finite()) {
            problems.push(format!("reg is {reg}: it must be 0 or more"));
        }
        let mut pairs = pairs(model);
        pairs.retain(|pair| pair.linear && pair.a.is_variable() && pair.b.is_variable());
        if pairs.is_empty() {
            problems.push(
                "no linear layer has an adapter whose A and B are trained: there is nothing to \
                 precondition"
                    .into(),
            );
        }
        if !problems.is_empty() {
            return Err(Error::Optimizer(problems));
        }
        Ok(Self { adamw, pairs, reg })
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
        for pair in &self.pairs {
            if let Some(grad) = own.remove(&pair.a) {
                let inverse = pair.inverse_of_b(self.reg)?;
                own.insert(&pair.a, pair.precondition_a(&grad, &inverse)?);
            }
            if let Some(grad) = own.remove(&pair.b) {
                let inverse = pair.inverse_of_a(self.reg)?;
                own.insert(&pair.b, pair.precondition_b(&grad, &inverse)?);
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
