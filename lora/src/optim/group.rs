//! Groups of parameters with a learning rate and a weight decay of their own.

use super::trained::{Trained, trained};
use crate::LoraModule;
use candle_core::Var;

/// Parameters that share a learning rate and a weight decay.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::Linear;
/// use lora::optim::{AdamW, Group};
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// let weight = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
/// let model = Linear::new(weight, None).to_lora(&LoraConfig::new(2))?;
/// let vars = model.trainable_vars(); // A and B
/// let groups = [Group::new(&vars[..1], 1e-4), Group::new(&vars[1..], 1e-3).weight_decay(0.01)];
/// let optimizer = AdamW::grouped(&model, groups)?;
/// assert_eq!(optimizer.paths().count(), 2);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Group {
    /// The parameters.
    pub vars: Vec<Var>,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay: each step takes lr·weight_decay of the parameter off it.
    pub weight_decay: f64,
}

impl Group {
    /// A group without weight decay.
    pub fn new(vars: &[Var], lr: f64) -> Self {
        Self {
            vars: vars.to_vec(),
            lr,
            weight_decay: 0.0,
        }
    }

    /// Sets the weight decay.
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = weight_decay;
        self
    }

    pub(super) fn of<'a>(
        params: impl IntoIterator<Item = &'a Trained>,
        lr: f64,
        weight_decay: f64,
    ) -> Self {
        let params = params.into_iter();
        Self {
            vars: params.map(|param| param.var.clone()).collect(),
            lr,
            weight_decay,
        }
    }
}

/// All trained parameters as two groups: matrices, whose weights decay, and the rest.
///
/// In the second group nothing decays: biases, the parameters of normalisations, and whatever has
/// one dimension, such as DoRA's magnitude.
pub fn weight_decay_groups<M: LoraModule>(model: &M, lr: f64, decay: f64) -> Vec<Group> {
    let params = trained(model);
    let (decayed, kept): (Vec<_>, Vec<_>) = (params.iter())
        .partition(|param| !param.is_vector() && !param.in_norm() && !is_bias(&param.path));
    vec![Group::of(decayed, lr, decay), Group::of(kept, lr, 0.0)]
}

fn is_bias(path: &str) -> bool {
    path == "bias" || path.ends_with(".bias")
}
