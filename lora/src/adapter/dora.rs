//! DoRA, <https://arxiv.org/abs/2402.09353>: every formula for magnitudes and norms.
//!
//! With V = W + s·B·A and a magnitude m for each output the weight is m ⊙ V / ‖V‖. The norm has no
//! epsilon and counts as a constant in the backward pass, as in PEFT.

use super::wider;
use candle_core::{D, DType, Result, Shape, Tensor};

/// The norm of each output's weights in V, (out), taken over all dimensions but the outputs'.
pub(crate) fn norms(v: &Tensor, output_dim: usize) -> Result<Tensor> {
    let outputs = v.transpose(0, output_dim)?.flatten_from(1)?;
    outputs.sqr()?.sum(D::Minus1)?.sqrt()
}

/// The factor of each output, m / ‖V‖: (out).
pub(crate) fn gain(magnitude: &Tensor, norms: &Tensor) -> Result<Tensor> {
    magnitude.flatten_all()? / norms.to_dtype(magnitude.dtype())?
}

/// Multiplies the weights of each output by its factor.
pub(crate) fn scale_outputs(weight: &Tensor, gain: &Tensor, output_dim: usize) -> Result<Tensor> {
    let mut shape = vec![1; weight.rank()];
    shape[output_dim] = gain.elem_count();
    weight.broadcast_mul(&gain.reshape(shape)?)
}

/// The magnitudes that a fresh adapter starts with: the norms, rounded to the weight's dtype first,
/// as PEFT does.
pub(crate) fn start(norms: &Tensor, weight: DType, adapter: DType, shape: Shape) -> Result<Tensor> {
    norms.to_dtype(weight)?.to_dtype(adapter)?.reshape(shape)
}

/// The shape of the magnitudes for a weight of this rank: (out), for a convolution (1, out, 1, ..).
pub(crate) fn magnitude_shape(weight_rank: usize, outputs: usize) -> Shape {
    if weight_rank <= 2 {
        return outputs.into();
    }
    let mut shape = vec![1; weight_rank];
    // As PEFT's file has them: like the outputs of the convolution, (batch, out, ..).
    shape[1] = outputs;
    shape.into()
}

/// The dtype to compute norms in.
pub(crate) fn precision(weight: DType) -> DType {
    wider(weight, DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Whatever the weight, the norms of the result are the magnitudes.
    #[test]
    fn the_norms_become_the_magnitudes() -> Result<()> {
        for output_dim in 0..3 {
            let v: Vec<f64> = (0..24).map(|i| ((i * 7 + 3) % 11) as f64 - 5.0).collect();
            let v = Tensor::from_vec(v, (3, 4, 2), &Device::Cpu)?;
            let n = v.dim(output_dim)?;
            let m = (Tensor::arange(0., n as f64, &Device::Cpu)? + 1.0)?;
            let gain = gain(&m, &norms(&v, output_dim)?)?;
            let scaled = scale_outputs(&v, &gain, output_dim)?;
            let difference = (norms(&scaled, output_dim)? - m)?.abs()?.max_all()?;
            assert!(difference.to_scalar::<f64>()? < 1e-12);
        }
        Ok(())
    }
}
