//! Learned tensors without a layer around them.

use super::{F32, adapted, linear, live};
use candle_core::{D, Module, Result, Tensor};
use candle_nn::Linear;
use lora::layers::Weight;
use lora::{LoraModel, LoraModule};
use lora_tests::fixed;

/// A convolution over time and space of patches that do not overlap: its weight has five dimensions, and
/// is applied as a matrix.
#[derive(Clone, Debug, LoraModel)]
struct Patches {
    #[lora(rank)]
    proj: Weight,
    positions: Tensor,
}

#[lora::forward]
impl Module for Patches {
    /// (patches, channels, time, height, width) to (patches, out)
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = xs.flatten_from(1)?.matmul(&self.proj.tensor()?.t()?)?;
        xs.broadcast_add(&self.positions)
    }
}

/// Mixes each position with that before, by learned shares: a layer of RWKV.
#[derive(Clone, Debug, LoraModel)]
struct TimeMix {
    share: Tensor,
    decay: Option<Tensor>,
    #[lora(rank)]
    key: Linear,
    #[lora(rank)]
    value: Linear,
}

#[lora::forward]
impl Module for TimeMix {
    /// (time, width)
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let before = xs.narrow(0, 0, xs.dim(0)? - 1)?;
        let before = Tensor::cat(&[xs.narrow(0, 0, 1)?.zeros_like()?, before], 0)?;
        let mixed = (xs.broadcast_mul(&self.share)? + (before - xs)?)?;
        let mut ys = mixed.apply(&self.key)?.sqr()?.apply(&self.value)?;
        if let Some(decay) = &self.decay {
            ys = ys.broadcast_mul(&decay.exp()?)?;
        }
        // A norm of the user's own.
        ys.broadcast_div(&(ys.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?)
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Net {
    patches: Patches,
    mix: Vec<TimeMix>,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = xs.apply(&self.patches)?;
        for mix in &self.mix {
            xs = (mix.forward(&xs)? + xs)?;
        }
        Ok(xs)
    }
}

#[test]
fn tensors_of_models() {
    let weight = fixed((4, 2, 2, 3, 3), F32, 1).flatten_from(1).unwrap();
    let mix = |decay: Option<Tensor>| TimeMix {
        share: fixed(4, F32, 3),
        decay,
        key: linear(4, 6, 5),
        value: linear(6, 4, 7),
    };
    let net = Net {
        patches: Patches {
            proj: Weight::new(weight).unwrap(),
            positions: fixed((5, 4), F32, 2),
        },
        mix: vec![mix(None), mix(Some(fixed(4, F32, 4)))],
    };
    let model = live("tensors", &net, &fixed((5, 2, 2, 3, 3), F32, 9));
    let expected = [
        "patches.proj",
        "mix.0.key",
        "mix.0.value",
        "mix.1.key",
        "mix.1.value",
    ];
    assert_eq!(adapted(&model), expected);
    let params = model.named_params().into_iter();
    let tensors: Vec<_> = params
        .filter(|param| param.tensor.rank() < 3 && !param.path.contains("weight"))
        .map(|param| param.path)
        .filter(|path| !path.ends_with("bias"))
        .collect();
    let expected = [
        "patches.proj",
        "patches.positions",
        "mix.0.share",
        "mix.1.share",
        "mix.1.decay",
    ];
    assert_eq!(tensors, expected);
}
