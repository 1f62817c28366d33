//! The macros find the `lora` crate under the name that it has in `Cargo.toml`.

use adapters::LoraModel;
use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module};

/// A model.
#[derive(LoraModel)]
pub struct Net {
    #[lora(rank)]
    fc: Linear,
    #[lora(config = LoraNetConfig)]
    config: bool,
}

#[adapters::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match *self.config_flag() {
            true => xs.apply(&self.fc),
            false => Ok(xs.clone()),
        }
    }
}

impl Net {
    fn config_flag(&self) -> &bool {
        &self.config
    }
}

impl LoraNet {
    fn config_flag(&self) -> &bool {
        self.config.base()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adapters::LoraConfig;
    use candle_core::{DType, Device};

    #[test]
    fn converts() {
        let weight = Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
        let net = Net {
            fc: Linear::new(weight, None),
            config: true,
        };
        let model: LoraNet = net.to_lora(&LoraConfig::new(1)).unwrap();
        let xs = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
        let ys = model.forward(&xs).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(ys, [[2.0, 2.0]]);
        let config: &LoraNetConfig = &model.config;
        assert_eq!(config.lora().rank, 1);
    }
}
