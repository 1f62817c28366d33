//! Two layers of a transformer's widths with an activation between them, on random rows.

use super::adapt::{self, Parts};
use super::data;
use super::measure::Bench;
use super::options::{Args, Written};
use anyhow::Result;
use candle_core::{DType, Tensor};
use candle_nn::{Activation, Linear, VarBuilder, linear};
use lora::models::{Architecture, Options, Variant};
use lora::{Lora, LoraModel, blocks};

/// The width of input and result.
const WIDTH: usize = 768;

#[derive(Clone, Debug, LoraModel)]
struct Mlp {
    #[lora(rank)]
    fc1: Linear,
    act: Activation,
    #[lora(rank)]
    fc2: Linear,
}

#[lora::forward]
impl Mlp {
    /// The library's way is one node.
    fn forward(&self, xs: &Tensor, written: Written) -> candle_core::Result<Tensor> {
        match written {
            Written::Library => blocks::Mlp::new(&self.fc1, &self.act, &self.fc2).forward(xs),
            Written::User => xs.apply(&self.fc1)?.apply(&self.act)?.apply(&self.fc2),
        }
    }
}

impl Architecture for Mlp {
    type Config = ();
    const CLASSIFIER: &'static str = "fc2";

    fn variants() -> &'static [Variant<()>] {
        &[]
    }

    fn with_options(_: &(), _: &Options) {}

    fn build(_: &(), vb: VarBuilder) -> candle_core::Result<Self> {
        Ok(Self {
            fc1: linear(WIDTH, 4 * WIDTH, vb.pp("fc1"))?,
            act: Activation::Gelu,
            fc2: linear(4 * WIDTH, WIDTH, vb.pp("fc2"))?,
        })
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let parts = |_: &()| Parts {
        blocks: None,
        mlps: None,
        all: vec!["fc1", "fc2"],
    };
    let (model, ()) = adapt::model::<Mlp>(args, &(), &Options::new(), parts)?;
    let (xs, targets) = data::rows(args, WIDTH)?;
    let targets = targets.to_dtype(DType::F32)?;
    let written = args.written;
    let output = move |model: &Lora<Mlp>| Ok(model.forward(&xs, written)?);
    let ys = output.clone();
    let loss = move |model: &Lora<Mlp>| {
        let ys: Tensor = ys(model)?;
        Ok((ys.to_dtype(DType::F32)? - &targets)?.sqr()?.mean_all()?)
    };
    let bench = Bench::<Mlp> {
        model,
        loss: Box::new(loss),
        output: Box::new(output),
    };
    bench.run(args)
}
