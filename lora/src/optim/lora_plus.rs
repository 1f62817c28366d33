//! LoRA+: B learns faster than A.

use super::trained::trained;
use super::{AdamW, Group};
use crate::{LoraModule, Result};

/// The groups of LoRA+, <https://arxiv.org/abs/2402.12354>: B with a higher learning rate than A.
///
/// As in PEFT's `create_loraplus_optimizer`:
///
/// | parameters | learning rate | weight decay |
/// |---|---|---|
/// | A, and what is trained in full with more than one dimension | lr | as set |
/// | A and B of an embedding | 10⁻⁶, see [`embedding_lr`](Self::embedding_lr) | as set |
/// | B, and every vector, such as DoRA's magnitude | lr·ratio | as set |
/// | of these, biases and the parameters of normalisations | lr·ratio | none |
///
/// PEFT counts only `LayerNorm` as a normalisation; here all normalisations count.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Linear, Optimizer};
/// use lora::optim::LoraPlus;
/// use lora::{LoraConfig, LoraModel};
///
/// let weight = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
/// let model = Linear::new(weight, None).to_lora(&LoraConfig::new(2))?;
/// let optimizer = LoraPlus::new(1e-4, 16.0).weight_decay(0.01).adamw(&model)?;
/// assert_eq!(optimizer.rate_of("lora_A.default.weight"), Some(1e-4));
/// assert_eq!(optimizer.rate_of("lora_B.default.weight"), Some(16e-4));
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraPlus {
    lr: f64,
    ratio: f64,
    embedding_lr: f64,
    weight_decay: f64,
}

impl LoraPlus {
    /// The learning rate of A, and the ratio of B's learning rate to it.
    pub fn new(lr: f64, ratio: f64) -> Self {
        Self {
            lr,
            ratio,
            embedding_lr: 1e-6,
            weight_decay: 0.0,
        }
    }

    /// Sets the learning rate of A and B of embeddings; 10⁻⁶ if it is not set.
    pub fn embedding_lr(mut self, lr: f64) -> Self {
        self.embedding_lr = lr;
        self
    }

    /// Sets the weight decay; 0 if it is not set.
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = weight_decay;
        self
    }

    /// The groups, in the order of the table; a group may be empty.
    pub fn groups<M: LoraModule>(&self, model: &M) -> Vec<Group> {
        let params = trained(model);
        let [mut a, mut embedding, mut b, mut b_kept] = [const { Vec::new() }; 4];
        for param in &params {
            let group = if param.is_of_embedding() {
                &mut embedding
            } else if !param.is_b() && !param.is_vector() {
                &mut a
            } else if param.in_norm() || param.is_bias() {
                &mut b_kept
            } else {
                &mut b
            };
            group.push(param);
        }
        vec![
            Group::of(a, self.lr, self.weight_decay),
            Group::of(embedding, self.embedding_lr, self.weight_decay),
            Group::of(b, self.lr * self.ratio, self.weight_decay),
            Group::of(b_kept, self.lr * self.ratio, 0.0),
        ]
    }

    /// AdamW on these groups.
    ///
    /// # Errors
    /// Those of [`AdamW::grouped`].
    pub fn adamw<M: LoraModule>(&self, model: &M) -> Result<AdamW> {
        AdamW::grouped(model, self.groups(model))
    }
}
