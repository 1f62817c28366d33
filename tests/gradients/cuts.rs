//! Every way to cut a gradient that has a shortcut around it: the check finds the layer below, and no
//! other. Each stands in a function of the user's, which `#[lora::forward]` does not see.

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::kv_cache::{KvCache, RotatingKvCache};
use candle_nn::{Linear, Module};
use lora::{Error, Init, LoraConfig, LoraModel, LoraModule};
use lora_tests::fixed;

type Function = fn(&Tensor) -> Result<Tensor>;

/// A function of the user's, beside a shortcut.
#[derive(Clone, Debug, LoraModel)]
struct Net {
    #[lora(rank)]
    below: Linear,
    #[lora(skip)]
    function: Function,
    #[lora(rank)]
    above: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = xs.apply(&self.below)?;
        let ys = (self.function)(&xs)?;
        (ys + xs)?.apply(&self.above)
    }
}

/// The result of the check for a model with this function, of this dtype.
fn check(function: Function, dtype: DType, init: Init) -> lora::Result<lora::GradientCheck> {
    let weight = |seed| (fixed((4, 4), dtype, seed) * 0.7).unwrap();
    let base = Net {
        below: Linear::new(weight(1), None),
        function,
        above: Linear::new(weight(3), None),
    };
    let model = base.to_lora(&LoraConfig::new(2).init(init).seed(4))?;
    let before = values(&model);
    let xs = fixed((1, 3, 4), dtype, 7);
    let target = fixed((1, 3, 4), dtype, 8);
    let result = model.check_gradients(|model| {
        let loss = (model.forward(&xs)? - &target)?.sqr()?;
        Ok(loss.to_dtype(DType::F32)?.mean_all()?)
    });
    assert_eq!(
        values(&model),
        before,
        "the parameters are the ones from before"
    );
    result
}

fn values<M: LoraModule>(model: &M) -> Vec<Vec<f64>> {
    let vars = model.trainable_vars();
    let vars = vars
        .iter()
        .map(|var: &Var| lora_tests::values(var).unwrap());
    vars.collect()
}

/// The layers that the check finds.
fn found(function: Function, dtype: DType, init: Init) -> Vec<String> {
    match check(function, dtype, init) {
        Err(Error::WrongGradient { layers, checked }) => {
            assert_eq!(checked, 2);
            let paths = layers
                .iter()
                .map(|line| line.split(':').next().unwrap().to_string());
            paths.collect()
        }
        other => panic!("not found: {other:?}"),
    }
}

macro_rules! cuts {
    ($($name:ident: $function:expr, $counterpart:expr;)*) => {$(
        #[test]
        fn $name() {
            let (cut, whole): (Function, Function) = ($function, $counterpart);
            assert_eq!(found(cut, DType::F32, Init::Random), ["below"]);
            // A fresh adapter, with B zero.
            assert_eq!(found(cut, DType::F32, Init::Default), ["below"]);
            let check_whole = |dtype, init| check(whole, dtype, init).unwrap();
            let result = check_whole(DType::F32, Init::Random);
            assert!(result.worst < 0.01 && result.passes <= 16, "{result}");
            assert!(check_whole(DType::F32, Init::Default).worst < 0.01);
            check_whole(DType::BF16, Init::Random);
        }
    )*};
}

/// A weight of a norm.
fn weight(xs: &Tensor) -> Result<Tensor> {
    Tensor::new(&[1.5f32, 0.5, -1.0, 1.0], xs.device())?.to_dtype(xs.dtype())
}

fn tables(xs: &Tensor) -> Result<(Tensor, Tensor)> {
    let angles = fixed((3, 2), xs.dtype(), 9);
    Ok(((angles.cos()?), (angles.sin()?)))
}

/// Keys and values go through a cache; the rest of the attention is left out.
fn cached(xs: &Tensor, cache: impl FnOnce(&Tensor) -> Result<(Tensor, Tensor)>) -> Result<Tensor> {
    let (keys, values) = cache(&xs.contiguous()?)?;
    (keys * values)? * 2.0
}

cuts! {
    rms_norm: |xs| candle_nn::ops::rms_norm(xs, &weight(xs)?, 1e-5),
        |xs| lora::ops::rms_norm(xs, &weight(xs)?, 1e-5);
    layer_norm: |xs| candle_nn::ops::layer_norm(xs, &weight(xs)?, &weight(xs)?, 1e-5),
        |xs| lora::ops::layer_norm(xs, &weight(xs)?, &weight(xs)?, 1e-5);
    softmax_as_a_gate: |xs| xs * candle_nn::ops::softmax_last_dim(&(xs * 4.0)?)?,
        |xs| xs * lora::ops::softmax_last_dim(&(xs * 4.0)?)?;
    rope: |xs| {
            let (cos, sin) = tables(xs)?;
            candle_nn::rotary_emb::rope(&xs.unsqueeze(1)?, &cos, &sin)?.squeeze(1)
        },
        |xs| {
            let (cos, sin) = tables(xs)?;
            lora::ops::rope(&xs.unsqueeze(1)?, &cos, &sin)?.squeeze(1)
        };
    norm_of_candle: |xs| candle_nn::LayerNorm::new(weight(xs)?, weight(xs)?.zeros_like()?, 1e-5).forward(xs),
        |xs| lora::ops::layer_norm(xs, &weight(xs)?, &weight(xs)?.zeros_like()?, 1e-5);
    detach: |xs| Ok(xs.sqr()?.detach()), |xs| xs.sqr();
    values_on_the_cpu: |xs| {
            let gate = xs.to_dtype(DType::F32)?.sum(2)?.to_vec2::<f32>()?;
            let gate = Tensor::new(gate, xs.device())?.to_dtype(xs.dtype())?;
            xs.broadcast_mul(&gate.unsqueeze(2)?)
        },
        |xs| xs.broadcast_mul(&xs.sum_keepdim(2)?);
    kv_cache: |xs| cached(xs, |xs| KvCache::new(1, 4).append(xs, xs)),
        |xs| cached(xs, |xs| lora::ops::KvCache::new(1, 4).append(xs, xs));
    rotating_kv_cache: |xs| cached(xs, |xs| RotatingKvCache::new(1, 4).append(xs, xs)),
        |xs| cached(xs, |xs| lora::ops::RotatingKvCache::new(1, 4).append(xs, xs));
}

/// Candle's takes no bf16 with these arguments.
#[test]
fn flash_attn() {
    use candle_nn::attention::AttnMask;
    let cut: Function = |xs| {
        let xs = (xs.unsqueeze(2)? * 2.0)?.contiguous()?;
        candle_nn::attention::flash_attn::<f32>(&xs, &xs, &xs, 1.0, AttnMask::None, None, None)?
            .squeeze(1)
    };
    let whole: Function = |xs| {
        let xs = (xs.unsqueeze(2)? * 2.0)?;
        lora::ops::flash_attn::<f32>(&xs, &xs, &xs, 1.0, AttnMask::None, None, None)?.squeeze(1)
    };
    assert_eq!(found(cut, DType::F32, Init::Random), ["below"]);
    check(whole, DType::F32, Init::Random).unwrap();
}

/// In half precision a cut that changes the gradient by more than the rounding is found, too.
#[test]
fn half_precision() {
    let cut: Function = |xs| Ok((xs.sqr()? * 3.0)?.detach());
    assert_eq!(found(cut, DType::BF16, Init::Random), ["below"]);
}

#[test]
fn the_error_names_numbers_and_causes() {
    let error = check(|xs| Ok(xs.sqr()?.detach()), DType::F32, Init::Random).unwrap_err();
    let text = error.to_string();
    for part in [
        "the gradient is wrong, among 2 layers with trainable parameters: below: by the gradient",
        "it changes by",
        "KvCache",
        "RotatingKvCache",
        "flash_attn",
        "detach()",
        "to_vec2",
        "lora::ops",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
