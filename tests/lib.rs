//! What the integration tests share: comparing tensors, and gradients by finite differences.

use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use lora::LoraModule;

pub mod op_fixtures;
mod random;
mod whole_life;

pub use random::cases;
pub use whole_life::whole_life;

/// The largest difference of two tensors, relative to the largest value of the second.
pub fn relative_error(actual: &Tensor, expected: &Tensor) -> Result<f64> {
    let largest = values(expected)?
        .iter()
        .fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
    Ok(absolute_error(actual, expected)? / largest)
}

/// The largest difference of two tensors.
pub fn absolute_error(actual: &Tensor, expected: &Tensor) -> Result<f64> {
    if actual.dims() != expected.dims() {
        bail!("shapes {:?} and {:?}", actual.dims(), expected.dims());
    }
    let (actual, expected) = (values(actual)?, values(expected)?);
    let differences = actual.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    // NaN must not get lost in a maximum.
    Ok(differences.fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m }))
}

/// Panics unless the tensors agree to this relative error.
#[track_caller]
pub fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    let error = relative_error(actual, expected).unwrap();
    assert!(error <= tolerance, "{what}: relative error {error:e}");
}

/// The values of a tensor of any floating-point dtype, flat.
pub fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Fixed values in −1..1 without a pattern, the same in every run: the fractional parts of
/// multiples of the golden ratio.
pub fn fixed(shape: impl Into<Shape>, dtype: DType, seed: usize) -> Tensor {
    let shape = shape.into();
    let value =
        |i: usize| ((i + 1 + 101 * seed) as f64 * 0.618_033_988_749_895).fract() * 2.0 - 1.0;
    let values: Vec<f64> = (0..shape.elem_count()).map(value).collect();
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap()
}

/// [`fixed`] as a variable of f64.
pub fn var(shape: impl Into<Shape>, seed: usize) -> Var {
    Var::from_tensor(&fixed(shape, DType::F64, seed)).unwrap()
}

/// Compares the gradients of `f` with central differences, for each of the variables.
///
/// `f` must compute in f64 and read the variables anew at each call.
#[track_caller]
pub fn check_gradients(what: &str, vars: &[(&str, &Var)], f: impl Fn() -> Result<Tensor>) {
    let weights = fixed(f().unwrap().shape(), DType::F64, 77);
    let loss = || (f()? * &weights)?.sum_all();
    let grads = loss().unwrap().backward().unwrap();
    for (name, var) in vars {
        let start = var.copy().unwrap().detach();
        let grad = grads.get(var);
        let grad = grad.unwrap_or_else(|| panic!("{what}: no gradient of {name}"));
        assert_eq!(
            grad.dims(),
            var.dims(),
            "{what}: shape of the gradient of {name}"
        );
        let mut expected = values(&start).unwrap();
        let at = expected.clone();
        for (index, expected) in expected.iter_mut().enumerate() {
            // About the cube root of f64's rounding, where the errors of rounding and bending are smallest.
            let step = 6e-6 * at[index].abs().max(1.0);
            let moved = |step: f64| {
                let mut at = at.clone();
                at[index] += step;
                var.set(&Tensor::from_vec(at, start.shape(), &Device::Cpu)?)?;
                loss()?.to_scalar::<f64>()
            };
            *expected = (moved(step).unwrap() - moved(-step).unwrap()) / (2.0 * step);
        }
        var.set(&start).unwrap();
        let expected = Tensor::from_vec(expected, start.shape(), &Device::Cpu).unwrap();
        assert_close(
            &format!("{what}: gradient of {name}"),
            grad,
            &expected,
            1e-7,
        );
    }
}

/// Gives every adapter parameter fixed values, so that the update is not zero.
pub fn fill_adapters<M: LoraModule>(model: &M) {
    for (index, param) in model.named_params().into_iter().enumerate() {
        if matches!(param.role, lora::Role::Adapter(_)) {
            let values = fixed(param.tensor.shape(), param.tensor.dtype(), index);
            let var = Var::from_tensor(&param.tensor).unwrap();
            var.set(&(values * 0.3).unwrap()).unwrap();
        }
    }
}

// Examples of pages that belong to no crate that could run them.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../lora-derive/docs/derive.md")]
struct Derive;

#[cfg(doctest)]
#[doc = include_str!("../lora-derive/docs/forward.md")]
struct Forward;
