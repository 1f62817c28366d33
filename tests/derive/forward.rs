//! `#[lora::forward]`: one impl block for a model and for its LoRA model.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Activation, Embedding, LayerNorm, Linear, Module, ModuleT};
use lora::{LoraConfig, LoraModel, LoraModule};

fn linear(inputs: usize, outputs: usize) -> Linear {
    let weight = Tensor::full(0.5f32, (outputs, inputs), &Device::Cpu).unwrap();
    Linear::new(weight, None)
}

fn ones(rows: usize, columns: usize) -> Tensor {
    Tensor::ones((rows, columns), DType::F32, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The base's LoRA model, which computes what the base does as long as B is zero.
fn convert<M: LoraModel>(base: &M) -> M::Lora {
    base.to_lora(&LoraConfig::new(1)).unwrap()
}

#[derive(Clone, Debug, LoraModel)]
struct Mlp {
    #[lora(rank)]
    fc1: Linear,
    #[lora(rank)]
    fc2: Linear,
    act: Activation,
}

#[lora::forward]
impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc1)?.apply(&self.act)?.apply(&self.fc2)
    }
}

#[lora::forward]
impl Mlp {
    /// Stays on the base: it makes a `Self`.
    fn new(width: usize) -> Result<Self> {
        Ok(Self {
            fc1: linear(width, 2 * width),
            fc2: linear(2 * width, width),
            act: Activation::Relu,
        })
    }

    fn halved(&self, xs: &Tensor) -> Result<Tensor> {
        self.forward(xs)? * Self::SCALE
    }

    /// Stays on the base: it reads a field that only the base's layer has.
    #[lora(skip)]
    fn weight(&self) -> &Tensor {
        self.fc1.weight()
    }

    const SCALE: f64 = 0.5;

    #[cfg(any())]
    fn gone(&self) -> Missing {}
}

#[test]
fn trait_and_inherent_impls() {
    let base = Mlp::new(2).unwrap();
    let model: LoraMlp = convert(&base);
    let xs = ones(1, 2);
    assert_eq!(values(&base.forward(&xs).unwrap()), [2.0, 2.0]);
    assert_eq!(values(&model.forward(&xs).unwrap()), [2.0, 2.0]);
    assert_eq!(values(&model.halved(&xs).unwrap()), [1.0, 1.0]);
    assert_eq!(base.weight().dims(), [4, 2]);
    let loss = model.forward(&xs).unwrap().sum_all().unwrap();
    model.backward(&loss).unwrap();
}

#[derive(Clone, Debug, LoraModel)]
enum FeedForward {
    Dense(Mlp),
    Experts {
        #[lora(rank)]
        experts: Vec<Linear>,
    },
    Identity,
}

#[lora::forward]
impl Module for FeedForward {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            FeedForward::Dense(mlp) => mlp.forward(xs),
            Self::Experts { experts } => {
                let all = experts.iter().map(|expert| expert.forward(xs));
                let all = all.collect::<Result<Vec<_>>>()?;
                all.iter().try_fold(xs.zeros_like()?, |sum, ys| sum + ys)
            }
            FeedForward::Identity => Ok(xs.clone()),
        }
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Router {
    feeds: Vec<FeedForward>,
}

#[lora::forward(also(FeedForward, Mlp))]
impl Router {
    /// Names another model's variants, in patterns, in a macro and in a type.
    fn dense(&self) -> Vec<&Mlp> {
        use FeedForward::Dense;
        let feeds = self.feeds.iter();
        let feeds = feeds.filter(|feed| !matches!(feed, FeedForward::Identity));
        let dense = feeds.filter_map(|feed: &FeedForward| match feed {
            Dense(mlp) => Some(mlp),
            _ => None,
        });
        dense.collect()
    }
}

#[test]
fn enums_and_other_types() {
    let experts = vec![linear(2, 2), linear(2, 2)];
    let base = Router {
        feeds: vec![
            FeedForward::Dense(Mlp::new(2).unwrap()),
            FeedForward::Experts { experts },
            FeedForward::Identity,
        ],
    };
    let model = convert(&base);
    let xs = ones(1, 2);
    for (base, model) in base.feeds.iter().zip(&model.feeds) {
        let expected = values(&base.forward(&xs).unwrap());
        assert_eq!(values(&model.forward(&xs).unwrap()), expected);
    }
    let dense: Vec<&LoraMlp> = model.dense();
    assert_eq!((base.dense().len(), dense.len()), (1, 1));
}

/// A block over its norm and activation.
#[derive(Clone, Debug, LoraModel)]
struct Block<N: Module, A = Activation> {
    norm: N,
    #[lora(rank)]
    fc: Linear,
    act: A,
}

#[lora::forward]
impl<N, A> Module for Block<N, A>
where
    N: Module,
    A: Module,
{
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = N::forward(&self.norm, xs)?;
        let ys = Module::forward(&self.fc, &ys)?;
        xs + Block::<N, A>::activate(&self.act, &ys)?
    }
}

#[lora::forward]
impl<N: Module, A: Module> Block<N, A> {
    fn activate(act: &A, xs: &Tensor) -> Result<Tensor> {
        <A as Module>::forward(act, xs)
    }
}

#[test]
fn generics() {
    let weight = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
    let base = Block {
        norm: LayerNorm::new_no_bias(weight, 1e-5),
        fc: linear(2, 2),
        act: Activation::Silu,
    };
    let model: LoraBlock<LayerNorm> = convert(&base);
    let xs = Tensor::new(&[[1f32, 3.0]], &Device::Cpu).unwrap();
    let expected = values(&base.forward(&xs).unwrap());
    assert_eq!(expected, [1.0, 3.0]);
    let actual = values(&model.forward(&xs).unwrap());
    assert!((actual[0] - 1.0).abs() < 1e-6 && (actual[1] - 3.0).abs() < 1e-6);
    let loss = model.forward(&xs).unwrap().sum_all().unwrap();
    model.backward(&loss).unwrap();
}

trait Family {
    const SCALE: f64;
    type Norm: LoraModel + Clone + std::fmt::Debug;
}

#[derive(Clone, Debug)]
struct Doubled;

impl Family for Doubled {
    const SCALE: f64 = 2.0;
    type Norm = LayerNorm;
}

/// A block over a family of types, and a value that is no layer.
#[derive(Clone, Debug, LoraModel)]
struct Scaled<F: Family, T> {
    norm: F::Norm,
    #[lora(rank)]
    fc: Linear,
    #[lora(skip)]
    offset: T,
}

#[lora::forward(skip(F, T))]
impl<F: Family, T: Into<f64> + Copy> Module for Scaled<F, T>
where
    F::Norm: Module,
{
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = self.norm.forward(xs)?.apply(&self.fc)?;
        ((ys * F::SCALE)? + T::into(self.offset))? + vec![1.0, 2.0].len() as f64
    }
}

#[test]
fn parameters_that_are_no_layers() {
    let weight = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
    let base: Scaled<Doubled, f32> = Scaled {
        norm: LayerNorm::new_no_bias(weight, 1e-5),
        fc: linear(2, 2),
        offset: 3.0,
    };
    let model = convert(&base);
    let ys = model.forward(&ones(1, 2)).unwrap();
    assert_eq!(values(&ys), [5.0, 5.0]);
}

/// A model with a state that its calls change.
#[derive(Clone, Debug, LoraModel)]
#[lora(name = "Adapted")]
struct Cached {
    embed: Embedding,
    #[lora(rank)]
    fc: Linear,
    #[lora(skip)]
    cache: Option<Tensor>,
}

#[lora::forward(name = "Adapted")]
impl Cached {
    fn step(&mut self, token: u32) -> Result<Tensor> {
        let ys = self.embed.forward(&Tensor::new(&[token], &Device::Cpu)?)?;
        let ys = match &self.cache {
            Some(cache) => Tensor::cat(&[cache, &ys], 0)?,
            None => ys,
        };
        self.cache = Some(ys.clone());
        ys.apply(&self.fc)
    }
}

#[lora::forward(name = "Adapted")]
impl ModuleT for Cached {
    fn forward_t(&self, xs: &Tensor, _train: bool) -> Result<Tensor> {
        xs.apply(&self.fc)
    }
}

#[test]
fn changes_by_mutable_reference() {
    let table = Tensor::ones((3, 2), DType::F32, &Device::Cpu).unwrap();
    let base = Cached {
        embed: Embedding::new(table, 2),
        fc: linear(2, 2),
        cache: None,
    };
    let mut model: Adapted = convert(&base);
    assert_eq!(model.step(0).unwrap().dims(), [1, 2]);
    assert_eq!(model.step(1).unwrap().dims(), [2, 2]);
    assert_eq!(model.forward_t(&ones(1, 2), true).unwrap().dims(), [1, 2]);
    assert!(base.cache.is_none());
}

/// Associated types and a trait of the user's own.
trait Encoder {
    type State;
    const LAYERS: usize;
    fn start(&self) -> Self::State;
    fn inner(&self) -> &Self;
}

#[lora::forward]
impl Encoder for Mlp {
    type State = Option<f64>;
    const LAYERS: usize = 2;

    fn start(&self) -> Self::State {
        Some(Mlp::SCALE)
    }

    fn inner(&self) -> &Self {
        self
    }
}

#[test]
fn associated_items() {
    let model = convert(&Mlp::new(2).unwrap());
    assert_eq!(model.inner().start(), Some(0.5));
    assert_eq!(<LoraMlp as Encoder>::LAYERS, 2);
}
