//! Structs of bare tensors that are linear layers: `#[lora(linear)]`.

use super::F32;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder};
use lora::{LoraConfig, LoraModel, LoraModule, Names};
use lora_tests::{assert_close, fill_adapters, fixed, values, whole_life};
use std::collections::HashMap;

/// As T5's: no bias, a field of another crate's type that is neither a model nor `Debug`.
#[derive(Clone, LoraModel)]
#[lora(linear)]
struct Projection {
    weight: Tensor,
    name: Name,
}

#[derive(Clone)]
struct Name(&'static str);

impl Module for Projection {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.broadcast_matmul(&self.weight.t()?)
    }
}

/// Other names, and a bias that some layers have.
#[derive(Clone, LoraModel)]
#[lora(linear(weight = ws, bias = bs))]
struct Dense<T: Copy> {
    bs: Option<Tensor>,
    ws: Tensor,
    tag: T,
}

impl<T: Copy> Module for Dense<T> {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = xs.broadcast_matmul(&self.ws.t()?)?;
        match &self.bs {
            Some(bias) => ys.broadcast_add(bias),
            None => Ok(ys),
        }
    }
}

/// A tuple, with a bias for sure.
#[derive(Clone, LoraModel)]
#[lora(linear(bias = 0, weight = 1))]
struct Head(Tensor, Tensor);

impl Head {
    fn weight(&self) -> &Tensor {
        &self.1
    }
}

impl Module for Head {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.broadcast_matmul(&self.1.t()?)?.broadcast_add(&self.0)
    }
}

#[derive(Clone, LoraModel)]
struct Net {
    #[lora(rank)]
    q: Projection,
    #[lora(rank = 3)]
    dense: Vec<Dense<u8>>,
    #[lora(trainable)]
    head: Head,
}

#[lora::forward]
impl Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = self.q.forward(xs)?;
        for dense in &self.dense {
            xs = dense.forward(&xs)?.gelu()?;
        }
        xs.apply(&self.head)
    }

    /// The copy reads the weight by the same name.
    fn classes(&self) -> Result<usize> {
        self.head.weight().dim(0)
    }
}

fn net() -> Net {
    let dense = |bias: bool, seed| Dense {
        bs: bias.then(|| fixed(5, F32, seed)),
        ws: fixed((5, 5), F32, seed + 1),
        tag: 7,
    };
    Net {
        q: Projection {
            weight: fixed((5, 4), F32, 1),
            name: Name("q"),
        },
        dense: vec![dense(true, 2), dense(false, 4)],
        head: Head(fixed(3, F32, 6), fixed((3, 5), F32, 7)),
    }
}

#[test]
fn it_lives() {
    let xs = fixed((2, 3, 4), F32, 8);
    let config = LoraConfig::new(2).seed(1);
    let model = whole_life(
        "linear",
        &net(),
        &config,
        |net| net.forward(&xs),
        |model| model.forward(&xs),
    );
    let paths: Vec<_> = (model.named_params().into_iter())
        .filter(|param| param.is_trainable())
        .map(|param| param.path)
        .collect();
    let expected = [
        "q.lora_A.default.weight",
        "q.lora_B.default.weight",
        "dense.0.lora_A.default.weight",
        "dense.0.lora_B.default.weight",
        "dense.1.lora_A.default.weight",
        "dense.1.lora_B.default.weight",
        "head.weight",
        "head.bias",
    ];
    assert_eq!(paths, expected);
    assert_eq!(model.classes().unwrap(), 3);
    let tuned = model.to_base().unwrap();
    assert_eq!((tuned.q.name.0, tuned.dense[1].tag), ("q", 7));
    assert!(tuned.dense[1].bs.is_none());
    assert_eq!(tuned.dense[0].bs.as_ref().unwrap().dims(), [5]);
    assert!(format!("{model:?}").contains("LoraOwnLinear(LoraLinear {"));
}

/// Number by number what candle's layer of the same tensors gives, with a bias on B, too.
#[test]
fn it_is_a_linear_layer() {
    let (ws, bs) = (fixed((5, 4), F32, 1), fixed(5, F32, 2));
    let base = Linear::new(ws.clone(), Some(bs.clone()));
    let own = Dense {
        ws,
        bs: Some(bs),
        tag: 'a',
    };
    let xs = fixed((2, 3, 4), F32, 3);
    for config in [
        LoraConfig::new(2).seed(1),
        LoraConfig::new(2).seed(1).use_dora(true),
        LoraConfig::new(2).seed(1).lora_bias(true),
    ] {
        let (mut own, mut base) = (
            own.to_lora(&config).unwrap(),
            base.to_lora(&config).unwrap(),
        );
        fill_adapters(&own);
        fill_adapters(&base);
        let same = |a: &Tensor, b: &Tensor| assert_eq!(values(a).unwrap(), values(b).unwrap());
        same(&own.forward(&xs).unwrap(), &base.forward(&xs).unwrap());
        same(own.weight(), base.weight());
        same(own.bias().unwrap(), base.bias().unwrap());
        own.merge().unwrap();
        base.merge().unwrap();
        let (own, base) = (own.to_base().unwrap(), base.to_base().unwrap());
        same(&own.ws, base.weight());
        same(own.bs.as_ref().unwrap(), base.bias().unwrap());
    }
}

/// What is moved to another dtype or replaced comes back so: the base's tensors of before are not kept.
#[test]
fn its_tensors_follow_the_model() {
    let other = Head(fixed(3, F32, 1), fixed((3, 5), F32, 2));
    let mut model = net().head.to_frozen().unwrap();
    lora::transfer_weights(&other.to_frozen().unwrap(), &mut model, &[]).unwrap();
    let back = model.to_base().unwrap();
    assert_close("weight", &back.1, &other.1, 0.0);
    assert_close("bias", &back.0, &other.0, 0.0);
}

/// A weight that is no matrix is an error, not a panic.
#[test]
fn a_weight_of_another_rank_is_refused() {
    let layer = Head(fixed(3, F32, 1), fixed((3, 5, 1), F32, 2));
    let error = layer.to_lora(&LoraConfig::new(1)).unwrap_err().to_string();
    assert!(error.contains("[3, 5, 1]"), "{error}");
}

/// The path is the checkpoint's, as for candle's layer.
#[test]
fn names_of_a_checkpoint() {
    let tensors = HashMap::from([("attn.q_proj.weight".to_string(), fixed((5, 4), F32, 1))]);
    let names = Names::new();
    let vb = names.record(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu));
    let mut net = net();
    net.q.weight = vb.get((5, 4), "attn.q_proj.weight").unwrap();
    let model = net.to_lora(&LoraConfig::new(2).target_modules(["q_proj"]));
    let status = model.unwrap().layer_status();
    assert_eq!(status[0].name, "attn.q_proj");
}
