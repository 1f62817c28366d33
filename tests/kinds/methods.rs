//! Methods of every form, lifetimes, conditions, parameters.

use super::{F32, adapted, config, linear};
use candle_core::{Module, Result, Tensor};
use candle_nn::{Func, Linear};
use lora::LoraModel;
use lora_tests::{fixed, whole_life};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// A trait of the user's, with all that traits have.
trait Step {
    type Output;
    const STEPS: usize;

    fn step(&self, xs: &Tensor) -> Result<Self::Output>;

    fn steps(self) -> usize
    where
        Self: Sized,
    {
        Self::STEPS
    }
}

#[derive(Clone, LoraModel)]
struct Block {
    #[lora(rank)]
    fc: Linear,
    scale: f64,
}

#[lora::forward]
impl Step for Block {
    type Output = Tensor;
    const STEPS: usize = 1;

    fn step(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc)? * self.scale
    }
}

/// A part of any type, around a block.
#[derive(Clone, LoraModel)]
struct Around<T> {
    inner: T,
    #[lora(rank)]
    fc: Linear,
}

#[lora::forward]
impl<T: Step<Output = Tensor>> Step for Around<T> {
    type Output = T::Output;
    const STEPS: usize = T::STEPS + 1;

    fn step(&self, xs: &Tensor) -> Result<T::Output> {
        self.inner.step(&xs.apply(&self.fc)?)
    }
}

#[lora::forward]
impl<T: Step<Output = Tensor>> Module for Box<Around<T>> {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.step(xs)?.tanh()
    }
}

#[derive(Clone, LoraModel)]
struct Net<'a, T> {
    first: Box<Around<T>>,
    blocks: Vec<Block>,
    #[cfg(not(any()))]
    #[lora(rank)]
    head: Linear,
    #[cfg(any())]
    #[lora(rank)]
    gone: Missing,
    #[lora(skip)]
    act: Func<'a>,
    #[lora(skip)]
    name: &'a str,
    calls: usize,
}

#[lora::forward]
impl<'a, T: Step<Output = Tensor>> Net<'a, T> {
    const WIDTH: usize = 4;

    fn named(first: T, name: &'a str) -> Result<Self> {
        let block = |seed| Block {
            fc: linear(Self::WIDTH, Self::WIDTH, seed),
            scale: 0.5,
        };
        Ok(Self {
            first: Box::new(Around {
                inner: first,
                fc: linear(4, 4, 3),
            }),
            blocks: vec![block(5), block(7)],
            head: linear(4, 2, 9),
            act: candle_nn::func(|xs| xs.gelu()),
            name,
            calls: 0,
        })
    }

    /// Counts, and gives the model on.
    fn called(&mut self) -> &mut Self {
        self.calls += 1;
        self
    }

    fn each(&self, mut f: impl FnMut(usize, &Block) -> Result<()>) -> Result<()> {
        let mut blocks = self.blocks.iter().enumerate();
        blocks.try_for_each(|(i, block)| f(i, block))
    }

    fn split(&self) -> Option<(&Block, &[Block], &'a str)> {
        let (first, rest) = self.blocks.split_first()?;
        Some((first, rest, self.name))
    }

    fn layers(&self) -> impl DoubleEndedIterator<Item = &Linear> {
        self.blocks.iter().map(|block| &block.fc)
    }

    fn parts(&self) -> Box<dyn Iterator<Item = (&Block, usize)> + '_> {
        Box::new(self.blocks.iter().zip(0..))
    }

    fn largest<'b>(&'b self, other: &'b Block) -> &'b Block
    where
        Self: Sized,
    {
        let blocks = self.blocks.iter().chain([other]);
        let largest = |a: &&Block, b: &&Block| a.scale.total_cmp(&b.scale);
        blocks.max_by(largest).unwrap_or(other)
    }

    #[cfg(not(any()))]
    async fn last(&self, xs: impl Future<Output = Result<Tensor>>) -> Result<Tensor> {
        xs.await?.apply(&self.head)
    }

    #[cfg(any())]
    async fn last(&self) -> Missing {}

    async fn forward(&mut self, xs: &Tensor) -> Result<Tensor> {
        let net = self.called();
        let mut xs = net.first.forward(xs)?;
        let Some((first, rest, name)) = net.split() else {
            candle_core::bail!("`{}` is empty", net.name)
        };
        assert_eq!((name, rest.len(), Self::WIDTH), ("net", 1, 4));
        assert_eq!(net.parts().count() + net.layers().rev().count(), 4);
        xs = net.largest(first).step(&xs)?;
        net.each(|i, block| {
            if i > 0 {
                xs = block.step(&xs)?.apply(&net.act)?;
            }
            Ok(())
        })?;
        net.last(async { Ok(xs) }).await
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!(),
    }
}

#[test]
fn methods_of_every_form() {
    let first = Block {
        fc: linear(4, 4, 1),
        scale: 2.0,
    };
    let name = String::from("net");
    let net = Net::named(first, &name).unwrap();
    let xs = fixed((3, 4), F32, 11);
    let mut model = whole_life(
        "methods",
        &net,
        &config(),
        |net| now(net.clone().forward(&xs)),
        |model| now(model.clone().forward(&xs)),
    );
    let expected = [
        "first.inner.fc",
        "first.fc",
        "blocks.0.fc",
        "blocks.1.fc",
        "head",
    ];
    assert_eq!(adapted(&model), expected);
    assert_eq!(model.called().called().calls, 2);
    let (net, model) = (net.first, model.first);
    assert_eq!((net.steps(), model.steps()), (2, 2));
}
