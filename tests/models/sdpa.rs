//! Attention by `ops::sdpa` with grouped queries, rotary positions and no copy of a tensor for its
//! shape.

use super::life::{Run, adapted, linear, live};
use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{Linear, Module};
use lora::{LoraConfig, LoraModel, LoraModule, ops};
use lora_tests::{assert_close, fill_adapters, fixed};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 4;
const TIME: usize = 5;

#[derive(Clone, Debug, LoraModel)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Whether to compute attention by its definition instead.
    #[lora(skip)]
    composed: bool,
}

#[lora::forward]
impl Module for Attention {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, time, _) = xs.dims3()?;
        let heads =
            |xs: Tensor, heads: usize| xs.reshape((batch, time, heads, HEAD_DIM))?.transpose(1, 2);
        let (cos, sin) = rotary()?;
        let q = ops::rope(&heads(xs.apply(&self.q_proj)?, HEADS)?, &cos, &sin)?;
        let k = ops::rope(&heads(xs.apply(&self.k_proj)?, KV_HEADS)?, &cos, &sin)?;
        let v = heads(xs.apply(&self.v_proj)?, KV_HEADS)?;
        let ys = if self.composed {
            composed(&q, &k, &v)?
        } else {
            ops::sdpa(&q, &k, &v, None, true, 0.5, 1.0)?
        };
        let ys = ys
            .transpose(1, 2)?
            .reshape((batch, time, HEADS * HEAD_DIM))?;
        ys.apply(&self.o_proj)
    }
}

fn rotary() -> Result<(Tensor, Tensor)> {
    let angles = (fixed((TIME, HEAD_DIM / 2), DType::F32, 7) * 2.0)?;
    Ok((angles.cos()?, angles.sin()?))
}

fn composed(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let repeat = |xs: &Tensor| {
        let (batch, heads, time, dim) = xs.dims4()?;
        let shape = (batch, heads, HEADS / KV_HEADS, time, dim);
        xs.unsqueeze(2)?.expand(shape)?.flatten(1, 2)?.contiguous()
    };
    let scores = (q.contiguous()?.matmul(&repeat(k)?.t()?)? * 0.5)?;
    let hidden =
        (0..TIME).flat_map(|i| (0..TIME).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 }));
    let hidden = Tensor::from_vec(hidden.collect(), (TIME, TIME), &Device::Cpu)?;
    let p = candle_nn::ops::softmax(&scores.broadcast_add(&hidden)?, D::Minus1)?;
    p.matmul(&repeat(v)?)
}

#[lora::forward]
impl Run for Attention {
    fn run(&mut self) -> Result<Tensor> {
        self.forward(&fixed((2, TIME, 12), DType::F32, 9))
    }
}

fn attention() -> Attention {
    Attention {
        q_proj: linear(12, HEADS * HEAD_DIM, 1),
        k_proj: linear(12, KV_HEADS * HEAD_DIM, 2),
        v_proj: linear(12, KV_HEADS * HEAD_DIM, 3),
        o_proj: linear(HEADS * HEAD_DIM, 12, 4),
        composed: false,
    }
}

fn config() -> LoraConfig {
    LoraConfig::new(2).target_modules(r".*_proj").seed(3)
}

#[test]
fn lives() {
    assert_eq!(adapted(&live(attention(), &config())).len(), 4);
}

#[test]
fn every_adapter_gets_the_gradient_of_the_composition() {
    let gradients = |composed: bool| {
        let base = Attention {
            composed,
            ..attention()
        };
        let mut model = base.to_lora(&config()).unwrap();
        fill_adapters(&model);
        let y = model.run().unwrap();
        let loss = (&y * fixed(y.shape(), DType::F32, 5)).unwrap();
        let grads = model.backward(&loss.sum_all().unwrap()).unwrap();
        let check = model.check_gradients(|model| Ok(model.clone().run()?.sqr()?.mean_all()?));
        check.unwrap();
        let vars = model.trainable_vars();
        vars.iter()
            .map(|var| grads.get(var).unwrap().clone())
            .collect::<Vec<_>>()
    };
    let (ours, composed) = (gradients(false), gradients(true));
    assert_eq!(ours.len(), 8);
    for (ours, composed) in ours.iter().zip(&composed) {
        assert_close("gradient", ours, composed, 1e-5);
    }
}
