//! The loss of the next token.

use super::{Decoder, LoraDecoder};
use crate::blocks::AsLinear;
use crate::ops::CrossEntropy;
use candle_core::{D, DType, Result, Tensor, bail};

#[lora::forward]
impl Decoder {
    /// How well the model predicts each next token, a scalar: the mean over the labels that count.
    ///
    /// `labels` is (batch, time), as transformers takes them: the ids, in i64, with −100 where a token is
    /// not to be learned, such as padding or the words of a prompt. `mask` is that of
    /// [`forward`](Self::forward). The logits are never held all at once, see
    /// [`CrossEntropy::of_linear`], unless the head itself carries an adapter.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use lora::models::decoder::{Decoder, DecoderConfig};
    /// use lora::models::{self, Options, Weights};
    ///
    /// let config: DecoderConfig = serde_json::from_str(
    ///     r#"{"model_type": "llama", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64,
    ///         "num_attention_heads": 4, "num_hidden_layers": 1}"#,
    /// ).unwrap();
    /// let model = models::build::<Decoder>(&config, Weights::Random(0), &Options::new())?.model;
    /// let ids = Tensor::new(&[[7i64, 3, 9, 1]], &Device::Cpu)?;
    /// let loss = model.loss(&ids, None, &ids)?.to_scalar::<f32>()?;
    /// assert!((loss - 50f32.ln()).abs() < 0.1);  // a fresh model knows nothing
    /// # Ok::<(), lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and if the labels have another shape or are no tokens.
    pub fn loss(&self, ids: &Tensor, mask: Option<&Tensor>, labels: &Tensor) -> Result<Tensor> {
        if labels.dims() != ids.dims() {
            bail!(
                "the labels are {:?}, the ids are {:?}",
                labels.dims(),
                ids.dims()
            );
        }
        let hidden = self.hidden_states(ids, mask, None)?;
        let labels = next(labels)?;
        let Some(lm_head) = self.lm_head() else {
            // Which says that there is no head.
            return self.logits(&hidden);
        };
        let head = lm_head.as_linear()?;
        if !head.is_plain() {
            return CrossEntropy::new().of_logits(&self.logits(&hidden)?, &labels);
        }
        let config = self.config();
        let mut criterion = CrossEntropy::new().logit_scale(1.0 / config.logits_scaling);
        if let Some(cap) = config.final_logit_softcapping {
            criterion = criterion.soft_cap(cap);
        }
        criterion.of_linear(&hidden, &head.weight, head.bias.as_ref(), &labels)
    }
}

/// For each position the label of the next one; −100 for the last, which has none.
fn next(labels: &Tensor) -> Result<Tensor> {
    let labels = labels.to_dtype(DType::I64)?;
    let (batch, time) = labels.dims2()?;
    let none = Tensor::full(-100i64, (batch, 1), labels.device())?;
    Tensor::cat(&[&labels.narrow(D::Minus1, 1, time - 1)?, &none], 1)
}
