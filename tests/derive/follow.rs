//! The copy of an impl block speaks of the LoRA types of the types that it names.

use super::{linear, norm};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{LayerNorm, Linear};
use lora::{LoraConfig, LoraModel, LoraModule};
use std::sync::Arc;

mod vision {
    use super::linear;
    use candle_core::{Module, Result, Tensor};
    use lora::LoraModel;

    #[derive(LoraModel)]
    pub struct Tower {
        #[lora(rank)]
        pub fc: super::Linear,
    }

    #[derive(LoraModel)]
    #[lora(name = "Adapted")]
    pub enum Head {
        Pooled(#[lora(rank)] super::Linear),
        None,
    }

    #[lora::forward]
    impl Tower {
        pub fn run(&self, xs: &Tensor) -> Result<Tensor> {
            self.fc.forward(xs)
        }
    }

    pub fn tower() -> Tower {
        Tower { fc: linear(2, 2) }
    }
}

/// No model: the name means the type itself.
#[derive(Clone, Debug)]
struct Config {
    width: usize,
}

#[derive(LoraModel)]
enum Proj {
    Full(#[lora(rank)] Linear),
    Split {
        #[lora(rank)]
        left: Linear,
        #[lora(rank)]
        right: Linear,
    },
}

#[derive(LoraModel)]
struct Block {
    proj: Proj,
    norm: LayerNorm,
}

type Function = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

/// What `skip` holds need not be `Debug`.
#[derive(Clone)]
struct Closure(Arc<Function>);

#[derive(LoraModel)]
struct Model {
    tower: vision::Tower,
    head: vision::Head,
    blocks: Vec<Block>,
    #[lora(skip)]
    config: Config,
    #[lora(skip)]
    closure: Closure,
    #[lora(rank)]
    last: Linear,
}

#[lora::forward(also(vision::Head))]
impl Model {
    /// A type elsewhere, by its path.
    fn tower(&self) -> &vision::Tower {
        &self.tower
    }

    /// A type of this module.
    fn block(&mut self, index: usize) -> &mut Block {
        &mut self.blocks[index]
    }

    /// A layer of candle's.
    fn last(&self) -> &candle_nn::Linear {
        &self.last
    }

    /// A type that is no model.
    fn config(&self) -> &Config {
        &self.config
    }

    /// Fields of another type, in patterns and as an argument.
    fn project(block: &Block, xs: &Tensor) -> Result<Tensor> {
        let ys = match &block.proj {
            Proj::Full(fc) => fc.forward(xs)?,
            Proj::Split { left, right } => (left.forward(xs)? + right.forward(xs)?)?,
        };
        block.norm.forward(&ys)
    }

    /// A type elsewhere with a LoRA type of another name: `also` gives its path.
    fn pooled(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.head {
            vision::Head::Pooled(fc) => fc.forward(xs),
            vision::Head::None => Ok(xs.clone()),
        }
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = self.tower().run(xs)?;
        for block in &self.blocks {
            xs = Self::project(block, &xs)?;
        }
        let xs = (self.closure.0)(&xs)?;
        self.pooled(&xs)?.apply(self.last())
    }
}

fn model() -> Model {
    let block = |proj| Block {
        proj,
        norm: norm(2),
    };
    let (left, right) = (linear(2, 2), linear(2, 2));
    Model {
        tower: vision::tower(),
        head: vision::Head::Pooled(linear(2, 2)),
        blocks: vec![
            block(Proj::Full(linear(2, 2))),
            block(Proj::Split { left, right }),
        ],
        config: Config { width: 2 },
        closure: Closure(Arc::new(|xs| xs * 2.0)),
        last: linear(2, 1),
    }
}

#[test]
fn types_follow() {
    let base = model();
    let mut model = base.to_lora(&LoraConfig::new(1)).unwrap();
    let xs = Tensor::new(&[[1f32, 3.0]], &Device::Cpu).unwrap();
    let expected = base.forward(&xs).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(
        model.forward(&xs).unwrap().to_vec2::<f32>().unwrap(),
        expected
    );
    let _: &vision::LoraTower = model.tower();
    let _: &mut LoraBlock = model.block(1);
    let _: &lora::layers::LoraLinear = model.last();
    assert_eq!(model.config().width, 2);
    assert!(format!("{model:?}").ends_with(", .. }"));
    model
        .check_gradients(|model| Ok(model.forward(&xs)?.sqr()?.sum_all()?))
        .unwrap();
}

/// Variants may be called as what the traits call their types.
#[derive(LoraModel)]
enum Names {
    Lora(#[lora(rank)] Linear),
    Base(#[lora(rank)] Linear),
    Layer(LayerNorm),
}

#[derive(LoraModel)]
struct Layer {
    names: Vec<Names>,
}

#[lora::forward]
impl Module for Layer {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.names
            .iter()
            .try_fold(xs.clone(), |xs, name| match name {
                Names::Lora(fc) | Names::Base(fc) => fc.forward(&xs),
                Names::Layer(norm) if matches!(name, Names::Layer(_)) => norm.forward(&xs),
                Names::Layer(_) => Ok(xs),
            })
    }
}

#[test]
fn variants_of_any_name() {
    let names = vec![
        Names::Lora(linear(2, 2)),
        Names::Layer(norm(2)),
        Names::Base(linear(2, 2)),
    ];
    let base = Layer { names };
    let model = base.to_lora(&LoraConfig::new(1)).unwrap();
    let xs = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(model.forward(&xs).unwrap().dims(), [1, 2]);
    assert!(matches!(model.names[1], LoraNames::Layer(_)));
}

/// Tables that several layers share. The type is no model: its method gets a gradient in place.
struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

#[lora::forward(plain)]
impl Rotary {
    fn apply(&self, xs: &Tensor) -> Result<Tensor> {
        candle_nn::rotary_emb::rope(xs, &self.cos, &self.sin)
    }
}

#[lora::forward]
fn attend(xs: &Tensor) -> Result<Tensor> {
    candle_nn::ops::softmax_last_dim(xs)
}

#[derive(LoraModel)]
struct Rotated {
    #[lora(rank)]
    fc: Linear,
    #[lora(skip)]
    rotary: Arc<Rotary>,
}

#[lora::forward]
impl Rotated {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = self.rotary.apply(&self.fc.forward(xs)?)?;
        attend(&ys)
    }
}

#[test]
fn gradients_pass_through_other_code() {
    let weight = Tensor::randn(0f32, 1.0, (4, 4), &Device::Cpu).unwrap();
    let angles = Tensor::new(&[[0.3f32, 0.9], [0.6, 1.8]], &Device::Cpu).unwrap();
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let base = Rotated {
        fc: Linear::new(weight, None),
        rotary: Arc::new(Rotary { cos, sin }),
    };
    let model = base.to_lora(&LoraConfig::new(2).seed(1)).unwrap();
    let xs = Tensor::randn(0f32, 1.0, (1, 1, 2, 4), &Device::Cpu).unwrap();
    let target = Tensor::randn(0f32, 1.0, (1, 1, 2, 4), &Device::Cpu).unwrap();
    let loss = |model: &LoraRotated| Ok((model.forward(&xs)? * &target)?.sum_all()?);
    assert_eq!(model.check_gradients(loss).unwrap().layers, 1);
}
