//! Candle's functions without a backward pass, called in every spelling: the copy for the LoRA type
//! calls those that have one, and the gradients are those of the same model written with them.

#![expect(clippy::useless_vec, reason = "a name inside of a macro is the case")]

use candle_core::{DType, Result, Tensor};
use candle_nn as nn;
use candle_nn::attention::{AttnMask, flash_attn};
use candle_nn::ops::softmax_last_dim;
use candle_nn::{Linear, Module, ops, rotary_emb};
use lora::{Init, LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, fixed};

const EPS: f32 = 1e-5;

/// The user's own function of a name of candle's.
fn rms_norm(xs: &Tensor, weight: &Tensor, _: f32) -> Result<Tensor> {
    xs.broadcast_mul(weight)
}

/// The user's own function with a signature of its own.
fn layer_norm<T: Into<f64>>(xs: &Tensor, scale: T) -> Result<Tensor> {
    xs * scale.into()
}

macro_rules! net {
    ($name:ident, |$self:ident, $xs:ident| $body:block) => {
        #[derive(Clone, Debug, LoraModel)]
        struct $name {
            #[lora(rank)]
            below: Linear,
            weight: Tensor,
            #[lora(rank)]
            above: Linear,
        }

        #[lora::forward]
        impl Module for $name {
            fn forward(&self, xs: &Tensor) -> Result<Tensor> {
                let $self = self;
                let _ = &$self.weight;
                let $xs = xs.apply(&self.below)?;
                // The shortcut gives every parameter a gradient, also where the function cuts it.
                let ys = $body?;
                (ys + &$xs)?.apply(&self.above)
            }
        }

        impl $name {
            fn new() -> Self {
                let weight = |seed| (fixed((4, 4), DType::F32, seed) * 0.7).unwrap();
                Self {
                    below: Linear::new(weight(1), None),
                    weight: fixed(4, DType::F32, 2),
                    above: Linear::new(weight(3), None),
                }
            }
        }
    };
}

/// The output for a fixed input, (batch, time, 4), and the gradients.
pub fn run<M>(base: &M) -> (Tensor, Vec<Tensor>)
where
    M: Module + LoraModel<Lora: Module>,
{
    let xs = fixed((2, 3, 4), DType::F32, 7);
    let config = LoraConfig::new(2).init(Init::Random).seed(4);
    let model = base.to_lora(&config).unwrap();
    let loss = |model: &M::Lora| Ok(model.forward(&xs)?.sqr()?.mean_all()?);
    let grads = model.backward(&loss(&model).unwrap()).unwrap();
    let vars = model.trainable_vars();
    let grads = vars.iter().map(|var| grads.get(var).unwrap().clone());
    let grads = grads.collect();
    // The base keeps candle's functions, and computes the same.
    let back = model.to_base().unwrap();
    assert_close(
        "base",
        &back.forward(&xs).unwrap(),
        &model.forward(&xs).unwrap(),
        1e-5,
    );
    let check = model.check_gradients(loss).unwrap();
    assert!(check.worst < 0.01, "{check}");
    (model.forward(&xs).unwrap(), grads)
}

macro_rules! same {
    ($test:ident: |$self:ident, $xs:ident| $spelt:block, $plain:block) => {
        #[test]
        fn $test() {
            net!(Spelt, |$self, $xs| $spelt);
            net!(Plain, |$self, $xs| $plain);
            let (output, grads) = run(&Spelt::new());
            let (expected, expected_grads) = run(&Plain::new());
            assert_close("output", &output, &expected, 1e-6);
            for (grad, expected) in grads.iter().zip(&expected_grads) {
                assert_close("gradient", grad, expected, 1e-5);
            }
        }
    };
}

pub(super) use {net, same};

same!(full_path: |this, xs| { candle_nn::ops::rms_norm(&xs, &this.weight, EPS) },
    { lora::ops::rms_norm(&xs, &this.weight, EPS) });

same!(global_path: |this, xs| { ::candle_nn::ops::rms_norm(&xs, &this.weight, EPS) },
    { lora::ops::rms_norm(&xs, &this.weight, EPS) });

same!(module: |this, xs| { ops::layer_norm(&xs, &this.weight, &this.weight, EPS) },
    { lora::ops::layer_norm(&xs, &this.weight, &this.weight, EPS) });

same!(alias_of_the_crate: |_this, xs| { nn::ops::softmax_last_dim(&xs) },
    { lora::ops::softmax_last_dim(&xs) });

same!(function: |_this, xs| { softmax_last_dim(&xs) },
    { lora::ops::softmax_last_dim(&xs) });

same!(as_a_value: |_this, xs| { xs.apply(&softmax_last_dim) },
    { lora::ops::softmax_last_dim(&xs) });

same!(in_a_variable: |_this, xs| {
        let softmax_last_dim: fn(&Tensor) -> Result<Tensor> = ops::softmax_last_dim;
        softmax_last_dim(&xs)
    },
    { lora::ops::softmax_last_dim(&xs) });

same!(imported_inside: |this, xs| {
        use candle_nn::ops::rms_norm;
        rms_norm(&xs, &this.weight, EPS)
    },
    { lora::ops::rms_norm(&xs, &this.weight, EPS) });

same!(in_a_macro: |_this, xs| {
        let parts = vec![nn::ops::softmax_last_dim(&xs)?, xs.clone()];
        &parts[0] + &parts[1]
    },
    { lora::ops::softmax_last_dim(&xs)? + &xs });

same!(in_a_closure: |_this, xs| {
        let both = [xs.clone(), (&xs * 2.0)?];
        let both: Vec<Tensor> = both.iter().map(ops::softmax_last_dim).collect::<Result<_>>()?;
        let add = |one: &Tensor| one + ops::softmax_last_dim(&both[1])?;
        add(&both[0])
    },
    { lora::ops::softmax_last_dim(&xs)? + lora::ops::softmax_last_dim(&lora::ops::softmax_last_dim(&(&xs * 2.0)?)?)? });

/// The rotary tables for 3 steps of one head of 4.
fn tables() -> Result<(Tensor, Tensor)> {
    let angles = fixed((3, 2), DType::F32, 9);
    Ok((angles.cos()?, angles.sin()?))
}

same!(chosen: |this, xs| {
    let interleaved = this.weight.elem_count() == 4;
    let rope = if interleaved { rotary_emb::rope_i } else { rotary_emb::rope };
    let (cos, sin) = tables()?;
    rope(&xs.unsqueeze(1)?, &cos, &sin)?.squeeze(1)
},
{
    let (cos, sin) = tables()?;
    lora::ops::rope_i(&xs.unsqueeze(1)?, &cos, &sin)?.squeeze(1)
});

same!(shadowed_by_its_result: |_this, xs| {
    use candle_nn::rotary_emb::rope;
    let (cos, sin) = tables()?;
    let rope = rope(&xs.unsqueeze(1)?, &cos, &sin)?;
    rope.squeeze(1)
},
{
    let (cos, sin) = tables()?;
    lora::ops::rope(&xs.unsqueeze(1)?, &cos, &sin)?.squeeze(1)
});

same!(rope_thd: |_this, xs| {
    let (cos, sin) = tables()?;
    candle_nn::rotary_emb::rope_thd(&xs.unsqueeze(2)?, &cos, &sin)?.squeeze(2)
},
{
    let (cos, sin) = tables()?;
    lora::ops::rope_thd(&xs.unsqueeze(2)?, &cos, &sin)?.squeeze(2)
});

same!(flash: |_this, xs| {
    let heads = xs.unsqueeze(2)?;
    flash_attn::<f32>(&heads, &heads, &heads, 0.5, AttnMask::causal(), None, None)?.squeeze(1)
},
{
    let heads = xs.unsqueeze(1)?;
    lora::ops::sdpa(&heads, &heads, &heads, None, true, 0.5, 1.0)?.squeeze(1)
});

// What is not candle's stays, whatever its name.

same!(own_function: |this, xs| { rms_norm(&xs, &this.weight, EPS) },
    { xs.broadcast_mul(&this.weight) });

same!(own_generic_function: |_this, xs| { layer_norm::<f32>(&xs, 0.5) }, { &xs * 0.5 });

same!(own_closure: |_this, xs| {
        let scale = String::from("0.5");
        let rope = |xs: &Tensor| xs * scale.parse::<f64>().unwrap();
        rope(&xs)? + rope(&xs)?
    },
    { &xs * 1.0 });

same!(own_local: |_this, xs| {
        let layer_norm = (&xs * 0.5)?;
        let pair = (layer_norm.clone(), layer_norm);
        pair.0 + pair.1
    },
    { &xs * 1.0 });
