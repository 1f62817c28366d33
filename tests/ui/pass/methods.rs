//! Methods of every form: generic, async, with `impl Trait`, with references, tuples and iterators as results.
#![deny(warnings, missing_docs, clippy::all)]
#![allow(dead_code)]

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Linear, Module};
use lora::{LoraConfig, LoraLayer, LoraModel, LoraModule};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// A part.
#[derive(LoraModel)]
pub struct Block {
    #[lora(rank)]
    fc: Linear,
    scale: f64,
}

/// A model that borrows, with a field under a condition.
#[derive(LoraModel)]
pub struct Net<'a> {
    blocks: Vec<Block>,
    #[cfg(not(any()))]
    #[lora(rank)]
    head: Linear,
    #[cfg(any())]
    #[lora(rank)]
    gone: Missing,
    #[lora(skip)]
    name: &'a str,
}

#[lora::forward]
impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc)? * self.scale
    }
}

/// The type of the block is within a box.
#[lora::forward]
impl Module for Box<Block> {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        Block::forward(self, xs)? * 2.0
    }
}

/// A trait for references, too.
pub trait Named {
    /// A constant.
    const LETTERS: usize;
    /// A method that no trait object has.
    fn letters(self) -> usize
    where
        Self: Sized;
}

#[lora::forward]
impl Named for &Net<'_> {
    const LETTERS: usize = Net::LETTERS;

    fn letters(self) -> usize
    where
        Self: Sized,
    {
        self.name.len() * Self::LETTERS
    }
}

#[lora::forward]
impl<'a> IntoIterator for &'a Net<'_> {
    type Item = &'a Block;
    type IntoIter = std::slice::Iter<'a, Block>;

    fn into_iter(self) -> Self::IntoIter {
        self.blocks.iter()
    }
}

#[lora::forward]
impl<'a> Net<'a> {
    const LETTERS: usize = 5;

    /// A result with the model in it stays on the base.
    pub fn load(name: &'a str) -> Result<Self> {
        let weight = |value: f64| Tensor::full(value as f32, (2, 2), &Device::Cpu);
        let block = |value| -> Result<Block> {
            Ok(Block {
                fc: Linear::new(weight(value)?, None),
                scale: 0.5,
            })
        };
        Ok(Self {
            blocks: vec![block(1.0)?, block(2.0)?],
            head: Linear::new(weight(3.0)?, None),
            name,
        })
    }

    /// So does one that is an option, by value.
    pub fn renamed(mut self, name: &'a str) -> Option<Self> {
        self.name = name;
        Some(self)
    }

    /// Waits for the input.
    ///
    /// # Errors
    /// If the shapes differ.
    pub async fn forward(&self, xs: impl Future<Output = Tensor>) -> Result<Tensor> {
        let mut xs = xs.await;
        for block in self.blocks() {
            xs = block.forward(&xs)?;
        }
        xs.apply(&self.head)
    }

    /// A closure that takes a layer, as `impl Trait`.
    pub fn visit_layers(&self, mut f: impl FnMut(&Linear)) {
        self.blocks.iter().for_each(|block| f(&block.fc));
        f(&self.head);
    }

    /// A closure that takes a type of this module, as a parameter.
    pub fn sum<F>(&self, f: F) -> f64
    where
        F: Fn(&Block) -> f64,
    {
        self.blocks.iter().map(f).sum()
    }

    /// Changes a field of another type.
    pub fn set_scale(&mut self, scale: f64) -> &mut Self {
        self.blocks.iter_mut().for_each(|block| block.scale = scale);
        self
    }

    /// A reference to a field, with its lifetime.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// An iterator over parts.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter()
    }

    /// An iterator over layers, in a box.
    pub fn layers(&self) -> Box<dyn DoubleEndedIterator<Item = &Linear> + '_> {
        Box::new(self.blocks.iter().map(|block| &block.fc))
    }

    /// A tuple of references.
    pub fn ends(&mut self) -> Option<(&mut Block, &Linear)> {
        Some((self.blocks.first_mut()?, &self.head))
    }

    /// A slice.
    pub fn all(&self) -> std::result::Result<&[Block], String> {
        match self.blocks.is_empty() {
            true => Err(format!("`{}` is empty", self.name)),
            false => Ok(&self.blocks),
        }
    }

    /// With a bound of its own.
    pub fn shared(&self) -> &Self
    where
        Self: Sized,
    {
        self
    }

    /// A statement and a match arm under conditions.
    pub fn conditional(&self) -> usize {
        #[cfg(any())]
        return self.gone;
        #[cfg(not(any()))]
        match self.blocks.len() {
            #[cfg(any())]
            0 => Missing,
            n => n * Self::LETTERS,
        }
    }
}

/// A block that is left out of the build.
#[cfg(any())]
#[lora::forward]
impl Missing {
    fn missing(&self) -> Missing2 {}
}

/// Something with an input and an output.
pub trait Chain<T: Module> {
    /// A number of parts.
    const PARTS: usize;
    /// The parts in a row.
    fn chain(&self, xs: &Tensor, last: &T) -> Result<Tensor>;
}

/// A model of any two parts.
#[derive(LoraModel)]
pub struct Pair<A, B>(#[lora(rank)] A, #[lora(rank)] B);

#[lora::forward]
impl<A: LoraLayer + Module, B, T: Module> Chain<T> for Pair<A, B>
where
    B: lora::LoraLayer + Module,
{
    const PARTS: usize = 3;

    fn chain(&self, xs: &Tensor, last: &T) -> Result<Tensor> {
        let Pair(first, second) = self;
        xs.apply(first)?.apply(second)?.apply(last)
    }
}

fn value(xs: &Tensor) -> f32 {
    xs.sum_all().unwrap().to_scalar().unwrap()
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!(),
    }
}

pub fn main() {
    let xs = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
    let config = LoraConfig::new(1);
    let net = Net::load("a").and_then(|net| net.renamed("other").ok_or_else(|| unreachable!()));
    let net = net.unwrap();
    let mut model: LoraNet = net.to_lora(&config).unwrap();
    let expected = now(net.forward(async { xs.clone() })).unwrap();
    let actual = now(model.forward(async { xs.clone() })).unwrap();
    assert_eq!((value(&actual), value(&expected)), (24.0, 24.0));

    let mut ranks = 0;
    model.visit_layers(|layer: &lora::layers::LoraLinear| ranks += layer.weight().rank());
    assert_eq!((ranks, model.sum(|block| block.scale)), (6, 1.0));
    model.set_scale(1.0).set_scale(2.0);
    assert_eq!(
        (model.sum(|block| block.scale), model.name()),
        (4.0, "other")
    );
    assert_eq!(
        (model.blocks().count(), model.layers().rev().count()),
        (2, 2)
    );
    let (first, _): (&mut LoraBlock, &lora::layers::LoraLinear) = model.ends().unwrap();
    first.scale = 3.0;
    assert_eq!(model.all().unwrap()[0].scale, 3.0);
    assert_eq!(model.shared().conditional(), 10);
    assert_eq!(((&net).letters(), (&model).letters()), (25, 25));

    assert_eq!((&net).into_iter().count(), 2);
    assert_eq!(
        (&model)
            .into_iter()
            .map(|block: &LoraBlock| block.scale)
            .sum::<f64>(),
        5.0
    );

    let boxed = |block: &LoraBlock| Box::new(block.clone());
    let boxed = boxed(&model.blocks[1]);
    assert_eq!(value(&Module::forward(&boxed, &xs).unwrap()), 32.0);
    let pair = Pair(net.head, net.blocks.into_iter().next().unwrap());
    let model = pair.to_lora(&config).unwrap();
    let last = model.1.to_base().unwrap();
    let chained = [pair.chain(&xs, &last), model.chain(&xs, &last)];
    assert_eq!(chained.map(|xs| value(&xs.unwrap())), [12.0, 12.0]);
    assert_eq!(<LoraPair<Linear, Block> as Chain<Linear>>::PARTS, 3);
}
