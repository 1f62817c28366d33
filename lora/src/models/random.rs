//! Fresh weights from a seed, the same on every device and with any number of threads.

use crate::init;
use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::Init;
use candle_nn::init::NormalOrUniform;
use candle_nn::var_builder::SimpleBackend;
use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use rayon::prelude::*;

/// Draws each weight from a stream of its own, so that no weight depends on another.
pub(super) struct Random {
    seed: u64,
}

/// Values that are drawn in one go.
const CHUNK: usize = 1 << 14;

/// 32-bit words of the stream for one value.
const WORDS: u128 = 2;

#[derive(Clone, Copy)]
enum Draw {
    Uniform { low: f64, high: f64 },
    Normal { mean: f64, std: f64 },
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed }
    }

    fn draw(&self, count: usize, name: &str, draw: Draw) -> Vec<f32> {
        let mut values = vec![0f32; count];
        let chunks = values.par_chunks_mut(CHUNK).enumerate();
        chunks.for_each(|(index, chunk)| {
            let mut rng = init::rng(Some(self.seed), name);
            rng.set_word_pos((index * CHUNK) as u128 * WORDS);
            draw.fill(chunk, &mut rng);
        });
        values
    }
}

impl Draw {
    fn fill(self, values: &mut [f32], rng: &mut ChaCha8Rng) {
        match self {
            Draw::Uniform { low, high } => {
                for value in values {
                    *value = (low + (high - low) * rng.random::<f64>()) as f32;
                }
            }
            Draw::Normal { mean, std } => {
                // Box and Muller, two values at a time; 1 − u is never 0.
                for pair in values.chunks_mut(2) {
                    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
                    let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
                    for (value, part) in pair.iter_mut().zip([cos, sin]) {
                        *value = (mean + std * radius * part) as f32;
                    }
                }
            }
        }
    }
}

impl SimpleBackend for Random {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let draw = match init {
            Init::Const(value) => {
                return Tensor::full(value as f32, shape, device)?.to_dtype(dtype);
            }
            Init::Randn { mean, stdev: std } => Draw::Normal { mean, std },
            Init::Uniform { lo: low, up: high } => Draw::Uniform { low, high },
            Init::Kaiming {
                dist,
                fan,
                non_linearity,
            } => {
                let std = non_linearity.gain() / (fan.for_shape(&shape) as f64).sqrt();
                let (low, high) = (-std * 3f64.sqrt(), std * 3f64.sqrt());
                match dist {
                    NormalOrUniform::Normal => Draw::Normal { mean: 0.0, std },
                    NormalOrUniform::Uniform => Draw::Uniform { low, high },
                }
            }
        };
        let values = self.draw(shape.elem_count(), name, draw);
        Tensor::from_vec(values, shape, &Device::Cpu)?
            .to_dtype(dtype)?
            .to_device(device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("`{name}`: random weights need a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(seed: u64, name: &str, count: usize) -> Vec<f32> {
        let normal = Draw::Normal {
            mean: 0.0,
            std: 0.02,
        };
        Random::new(seed).draw(count, name, normal)
    }

    #[test]
    fn a_seed_and_a_name_fix_the_values() {
        assert_eq!(draw(1, "a", 100), draw(1, "a", 100));
        assert_ne!(draw(1, "a", 100), draw(2, "a", 100));
        assert_ne!(draw(1, "a", 100), draw(1, "b", 100));
    }

    #[test]
    fn chunks_go_on_where_the_last_one_ended() {
        let one_go = {
            let mut values = vec![0f32; 2 * CHUNK + 5];
            let normal = Draw::Normal {
                mean: 0.0,
                std: 0.02,
            };
            normal.fill(&mut values, &mut init::rng(Some(7), "w"));
            values
        };
        assert_eq!(draw(7, "w", 2 * CHUNK + 5), one_go);
    }

    #[test]
    fn moments_are_those_of_the_normal_distribution() {
        let values = draw(0, "w", 100_000);
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / 1e5;
        let moment = |power| {
            let powers = values.iter().map(|&x| (f64::from(x) / 0.02).powi(power));
            powers.sum::<f64>() / 1e5
        };
        // Five standard errors.
        assert!(mean.abs() < 5.0 * 0.02 / 1e5f64.sqrt());
        assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / 1e5f64).sqrt());
        assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / 1e5f64).sqrt());
    }
}
