//! Draws the initial values of adapters, on the CPU, so that a seed means the same on every device.

use crate::linalg::gaussian;
use crate::{Error, Init, LoraConfig, Result};
use candle_core::{DType, Device, Shape, Tensor, Var};
use rand::rngs::ChaCha8Rng;
use rand::{Rng, RngExt, SeedableRng};

/// The shapes of an adapter's matrices, and the layer that they are for.
pub(crate) struct AdapterInit<'a> {
    pub(crate) a: Shape,
    pub(crate) b: Shape,
    /// Whether the layer is an embedding. An embedding starts with A zero and B random, any other
    /// layer with A random and B zero.
    pub(crate) embedding: bool,
    /// The layer's weight, which decides device and dtype.
    pub(crate) weight: &'a Tensor,
}

impl AdapterInit<'_> {
    /// Draws A and B as variables: in f64 for an f64 weight, in f32 for any other.
    pub(crate) fn draw(
        &self,
        config: &LoraConfig,
        path: &str,
        rank: usize,
    ) -> Result<(Tensor, Tensor)> {
        if !config.init.is_drawn() {
            let message = format!(
                "the initial value `{}` is for linear layers only; take `default` or exclude the \
                 layer",
                config.init
            );
            return Err(Error::layer(path, message));
        }
        let mut rng = rng(config.seed, path);
        // Values are first rounded to the weight's dtype, as PEFT does.
        let mut make = |shape: &Shape, draw: Draw| -> Result<Tensor> {
            let too_large = || {
                let message = format!("an adapter of rank {rank} does not fit into memory");
                Error::layer(path, message)
            };
            let count = shape
                .dims()
                .iter()
                .try_fold(1usize, |n, &dim| n.checked_mul(dim));
            let count = count.ok_or_else(too_large)?;
            // A file may ask for any rank: an error where memory is short, not an abort.
            let mut values = Vec::new();
            values.try_reserve_exact(count).map_err(|_| too_large())?;
            values.extend((0..count).map(|_| draw.sample(&mut rng)));
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
            let tensor = tensor.to_dtype(self.weight.dtype())?;
            let tensor = tensor.to_dtype(adapter_dtype(self.weight.dtype()))?;
            let tensor = tensor.to_device(self.weight.device())?;
            Ok(Var::from_tensor(&tensor)?.into_inner())
        };
        // A's rows are r filters over fan_in inputs. PEFT's Kaiming with a = √5 has this bound.
        let fan_in: usize = self.a.dims()[1..].iter().product();
        let kaiming = Draw::Uniform(1.0 / (fan_in as f64).sqrt());
        let (a, b) = match (config.init, self.embedding) {
            (Init::Default | Init::Gaussian, true) => (Draw::Zero, Draw::Normal(1.0)),
            (_, true) => (Draw::Normal(1.0), Draw::Normal(1.0)),
            (Init::Default, false) => (kaiming, Draw::Zero),
            (Init::Gaussian, false) => (Draw::Normal(1.0 / rank as f64), Draw::Zero),
            (_, false) => (kaiming, Draw::Uniform(1.0 / (rank as f64).sqrt())),
        };
        Ok((make(&self.a, a)?, make(&self.b, b)?))
    }
}

/// The dtype of adapters for a base weight of this dtype, as in PEFT: f64 for f64, otherwise f32.
pub(crate) fn adapter_dtype(weight: DType) -> DType {
    match weight {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// A stream of random numbers for each path, so that a layer's values do not depend on other
/// layers.
pub(crate) fn rng(seed: Option<u64>, path: &str) -> ChaCha8Rng {
    let seed = seed.unwrap_or_else(rand::random);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // FNV-1a: a seed must mean the same in every version, which the standard library's hasher does
    // not promise.
    let stream = path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    rng.set_stream(stream);
    rng
}

#[derive(Clone, Copy)]
enum Draw {
    Zero,
    /// U(−bound, bound).
    Uniform(f64),
    /// N(0, std²).
    Normal(f64),
}

impl Draw {
    fn sample(self, rng: &mut impl Rng) -> f64 {
        match self {
            Draw::Zero => 0.0,
            Draw::Uniform(bound) => (2.0 * rng.random::<f64>() - 1.0) * bound,
            Draw::Normal(std) => gaussian(rng) * std,
        }
    }
}
