//! The optimiser that the settings name.

use super::settings::{OptimizerName, Settings};
use candle_core::backprop::GradStore;
use lora::optim::{AdamW, AsAdamW, LoraFa, LoraPlus, Riemannian, weight_decay_groups};
use lora::{LoraModule, Result};

/// An optimiser of the library.
pub enum Optimizer {
    AdamW(AdamW),
    LoraFa(LoraFa),
    Riemannian(Riemannian),
}

impl Optimizer {
    /// For a model. LoRA-FA freezes A.
    ///
    /// # Errors
    /// If the model has nothing that the optimiser trains.
    pub fn new<M: LoraModule>(model: &mut M, settings: &Settings) -> Result<Self> {
        let (lr, decay) = (settings.lr, settings.weight_decay);
        let finish = |adamw: AdamW| {
            let (beta1, beta2) = (
                settings.beta1.unwrap_or(0.9),
                settings.beta2.unwrap_or(0.999),
            );
            adamw.betas(beta1, beta2)?.eps(settings.eps.unwrap_or(1e-8))
        };
        let adamw = |model: &M| {
            finish(AdamW::grouped(
                model,
                weight_decay_groups(model, lr, decay),
            )?)
        };
        Ok(match settings.optimizer {
            OptimizerName::Adamw => Self::AdamW(adamw(model)?),
            OptimizerName::LoraPlus => {
                let plus = LoraPlus::new(lr, settings.lora_plus_ratio.unwrap_or(16.0))
                    .embedding_lr(settings.embedding_lr.unwrap_or(1e-6))
                    .weight_decay(decay);
                Self::AdamW(finish(plus.adamw(model)?)?)
            }
            OptimizerName::LoraFa => Self::LoraFa(LoraFa::new(model, lr, decay)?),
            OptimizerName::Riemannian => {
                let reg = settings.riemannian_reg.unwrap_or(1e-2);
                Self::Riemannian(Riemannian::new(model, adamw(model)?, reg)?)
            }
        })
    }
}

impl AsAdamW for Optimizer {
    fn as_adamw(&self) -> &AdamW {
        match self {
            Self::AdamW(adamw) => adamw,
            Self::LoraFa(one) => one.as_adamw(),
            Self::Riemannian(one) => one.as_adamw(),
        }
    }

    fn as_adamw_mut(&mut self) -> &mut AdamW {
        match self {
            Self::AdamW(adamw) => adamw,
            Self::LoraFa(one) => one.as_adamw_mut(),
            Self::Riemannian(one) => one.as_adamw_mut(),
        }
    }

    fn take_step(&mut self, grads: &GradStore) -> Result<()> {
        match self {
            Self::AdamW(adamw) => adamw.take_step(grads),
            Self::LoraFa(one) => one.take_step(grads),
            Self::Riemannian(one) => one.take_step(grads),
        }
    }
}
