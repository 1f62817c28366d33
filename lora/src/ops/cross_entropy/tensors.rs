//! By tensor operations, on any device.

use super::{CrossEntropy, Labels};
use crate::ops::wide;
use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::log_softmax;

impl CrossEntropy {
    /// The loss of logits (rows, classes).
    pub(super) fn on_tensors(&self, logits: &Tensor, labels: &Labels) -> Result<Tensor> {
        let device = logits.device();
        let (rows, classes): (Vec<u32>, Vec<u32>) = labels
            .counted()
            .map(|(row, label)| (row as u32, label))
            .unzip();
        let wide = wide(logits.dtype());
        if rows.is_empty() {
            // Zero, with a gradient of zeros.
            return logits.to_dtype(wide)?.sum_all()?.affine(0.0, 0.0);
        }
        let count = rows.len();
        let rows = Tensor::from_vec(rows, count, device)?;
        let classes = Tensor::from_vec(classes, count, device)?;
        let mut logits = logits.index_select(&rows, 0)?.to_dtype(wide)?;
        if self.scale != 1.0 {
            logits = (logits * self.scale)?;
        }
        if let Some(cap) = self.soft_cap {
            logits = ((logits / cap)?.tanh()? * cap)?;
        }
        let likelihood = log_softmax(&logits, D::Minus1)?;
        let of_label = likelihood.gather(&classes.unsqueeze(1)?, 1)?.squeeze(1)?;
        let number = logits.dim(1)?;
        let weights = match &self.weights {
            Some(weights) => weights.detach().to_device(device)?.to_dtype(wide)?,
            None => Tensor::ones(number, wide, device)?,
        };
        let of_rows = weights.index_select(&classes, 0)?;
        let mut loss = ((of_label * &of_rows)?.sum_all()? * (self.smoothing - 1.0))?;
        if self.smoothing > 0.0 {
            let all = likelihood.broadcast_mul(&weights)?.sum_all()?;
            loss = (loss - (all * (self.smoothing / number as f64))?)?;
        }
        if self.sum {
            return Ok(loss);
        }
        let total = of_rows
            .sum_all()?
            .to_dtype(DType::F64)?
            .to_scalar::<f64>()?;
        loss * if total == 0.0 { 0.0 } else { 1.0 / total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cross_entropy;
    use candle_core::Device;

    /// Devices without the kernels have the same loss.
    #[test]
    fn every_device_has_the_same_loss() -> Result<()> {
        let logits = Tensor::randn(0f64, 3f64, (5, 7), &Device::Cpu)?;
        let labels = Tensor::new(&[3i64, -100, 0, 6, 6], &Device::Cpu)?;
        let weights = Tensor::rand(0.1f64, 2f64, 7, &Device::Cpu)?;
        let plain = CrossEntropy::new();
        let rich = CrossEntropy::new()
            .label_smoothing(0.2)
            .class_weights(&weights)
            .logit_scale(0.5)
            .soft_cap(2.0);
        for criterion in [plain, rich.clone(), rich.sum()] {
            let expected = criterion.of_logits(&logits, &labels)?.to_scalar::<f64>()?;
            let read = Labels::read(&labels, 7, -100)?;
            let loss = criterion.on_tensors(&logits, &read)?.to_scalar::<f64>()?;
            assert!((loss - expected).abs() < 1e-12, "{loss} for {expected}");
        }
        let none = Tensor::new(&[-100i64; 5], &Device::Cpu)?;
        assert_eq!(cross_entropy(&logits, &none)?.to_scalar::<f64>()?, 0.0);
        Ok(())
    }
}
