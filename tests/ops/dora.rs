//! DoRA's layer as one node: values and gradients against its formula in tensors.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Linear, Module};
use lora::layers::LoraLinear;
use lora::{LoraConfig, LoraModule};
use lora_tests::{assert_close, fill_adapters, fixed};

const F64: DType = DType::F64;

/// A layer with DoRA, and its base.
fn layer((outputs, inputs): (usize, usize), rank: usize, bias: bool) -> (Linear, LoraLinear) {
    let bias = bias.then(|| fixed(outputs, F64, 2));
    let base = Linear::new(fixed((outputs, inputs), F64, 1), bias);
    let config = LoraConfig::new(rank).alpha(3.0).use_dora(true);
    let layer = LoraLinear::new(&base, &config).unwrap();
    fill_adapters(&layer);
    (base, layer)
}

/// A, B and the magnitudes.
fn parameters(layer: &LoraLinear) -> Vec<Var> {
    let vars = layer.trainable_vars();
    assert_eq!(vars.len(), 3);
    vars
}

/// m ⊙ (x·Wᵀ + s·x·Aᵀ·Bᵀ) / ‖W + s·B·A‖ + b. The norms count as constants.
fn by_tensors(base: &Linear, [a, b, m]: [&Tensor; 3], rank: usize, x: &Tensor) -> Result<Tensor> {
    let scaling = 3.0 / rank as f64;
    let update = (b.matmul(a)? * scaling)?;
    let sum = (base.weight() + update)?;
    let norms = sum.detach().sqr()?.sum(1)?.sqrt()?;
    let y = x.matmul(&sum.t()?)?.broadcast_mul(&(m / norms)?)?;
    match base.bias() {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// Value, and the gradients of x and the parameters.
fn numbers(
    x: &Tensor,
    vars: &[Var],
    forward: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Vec<Tensor> {
    let x = Var::from_tensor(x).unwrap();
    let y = forward(&x).unwrap();
    let loss = (&y * fixed(y.shape(), y.dtype(), 8)).unwrap();
    let grads = loss.sum_all().unwrap().backward().unwrap();
    let mut all = vec![y.detach(), grads.get(&x).unwrap().clone()];
    all.extend(vars.iter().map(|var| grads.get(var).unwrap().clone()));
    all
}

#[test]
fn one_node_follows_the_formula() {
    for (rows, outputs, inputs, rank) in [
        (1, 1, 1, 1),
        (2, 3, 5, 2),
        (37, 17, 16, 3),
        (300, 130, 33, 8),
        // Columns far apart in memory.
        (130, 65, 1100, 8),
        (700, 500, 20, 4),
    ] {
        for bias in [false, true] {
            let (base, layer) = layer((outputs, inputs), rank, bias);
            let x = fixed((rows, inputs), F64, 9);
            let vars = parameters(&layer);
            // Half to two and a half times the norms.
            let norms = base.weight().sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
            let factors = (fixed(outputs, F64, 7) + 1.5).unwrap();
            vars[2].set(&(norms * factors).unwrap()).unwrap();
            let expected = numbers(&x, &vars, |x| {
                let [a, b, m] = [0, 1, 2].map(|index| vars[index].as_tensor());
                by_tensors(&base, [a, b, m], rank, x)
            });
            for (dtype, tolerance) in [(F64, 1e-11), (DType::F32, 5e-5)] {
                let layer = layer.to_dtype(dtype).unwrap();
                let x = x.to_dtype(dtype).unwrap();
                let actual = numbers(&x, &parameters(&layer), |x| layer.forward(x));
                for (index, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                    let what = format!("{rows}x{outputs}x{inputs} {bias} {dtype:?} {index}");
                    assert_close(&what, actual, expected, tolerance);
                }
            }
        }
    }
}

/// A magnitude of 0 has a gradient, too, though its output tells nothing.
#[test]
fn a_magnitude_of_zero_has_its_gradient() {
    let (base, layer) = layer((4, 3), 2, true);
    let vars = parameters(&layer);
    vars[2]
        .set(&Tensor::new(&[0f64, 1.0, -2.0, 1e-9], &Device::Cpu).unwrap())
        .unwrap();
    let x = fixed((5, 3), F64, 9);
    let expected = numbers(&x, &vars, |x| {
        let [a, b, m] = [0, 1, 2].map(|index| vars[index].as_tensor());
        by_tensors(&base, [a, b, m], 2, x)
    });
    let actual = numbers(&x, &vars, |x| layer.forward(x));
    for (actual, expected) in actual.iter().zip(&expected) {
        assert_close("zero", actual, expected, 1e-12);
    }
}

#[test]
fn an_empty_batch_runs() {
    let (_, layer) = layer((4, 3), 2, true);
    let x = Tensor::zeros((0, 3), F64, &Device::Cpu).unwrap();
    let all = numbers(&x, &parameters(&layer), |x| layer.forward(x));
    assert_eq!((all[0].dims(), all[1].dims()), (&[0, 4][..], &[0, 3][..]));
    for grad in &all[2..] {
        let largest = grad.abs().unwrap().max_all().unwrap();
        assert_eq!(largest.to_scalar::<f64>().unwrap(), 0.0);
    }
}
