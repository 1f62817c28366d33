//! A checkpoint of random values for any name and shape, which notes the names.

use candle_core::{DType, Device, Result, Shape, Tensor, TensorId};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The names that were asked for, and the tensor that was last given for each.
#[derive(Clone, Default)]
pub struct Asked(Arc<Mutex<BTreeMap<String, TensorId>>>);

impl Asked {
    /// A builder whose values depend on the names alone, not on their order.
    pub fn builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Random(self.clone())), DType::F32, Device::Cpu)
    }

    pub fn names(&self) -> BTreeMap<String, TensorId> {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.clone()
    }
}

struct Random(Asked);

impl SimpleBackend for Random {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let normal = normal(name, &shape)?;
        let values = match is_positive(name, &shape) {
            true => (normal.tanh()? * 0.2)? + 1.,
            false => normal * spread(&shape),
        };
        let tensor = values?.to_dtype(dtype)?.to_device(device)?;
        let mut asked = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.insert(name.to_string(), tensor.id());
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("the shape of {name} is not said")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// True for the gain of a norm, and for what is divided by or has its root taken.
fn is_positive(name: &str, shape: &Shape) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    match last {
        "weight_g" | "original0" | "running_var" => true,
        "weight" | "scale" | "gamma" => shape.rank() == 1,
        _ => false,
    }
}

/// About 0.2, and less for wide layers, so that outputs stay as large as inputs.
fn spread(shape: &Shape) -> f64 {
    let width: usize = shape.dims().iter().skip(1).product();
    0.2f64.min(1. / (width.max(1) as f64).sqrt())
}

/// Values of a normal distribution that depend on the name.
fn normal(name: &str, shape: &Shape) -> Result<Tensor> {
    // FNV-1a: the same on each machine.
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    // SplitMix64.
    let mut uniform = || {
        state = u64::wrapping_add(state, 0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut gaussian = || {
        let (radius, angle) = (1. - uniform(), uniform());
        ((-2. * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
    };
    let values = (0..shape.elem_count()).map(|_| gaussian()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// Values for a part of an adapter.
pub fn part(name: &str, shape: &Shape) -> Result<Tensor> {
    normal(name, shape)? * spread(shape)
}
