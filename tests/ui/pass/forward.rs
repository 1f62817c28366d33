//! Impl blocks for a model and its LoRA model, with each lint on.
#![deny(warnings, missing_docs, clippy::all)]
#![allow(dead_code)]

use candle_core::{IndexOp, Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder};
use lora::LoraModel;

/// A model.
#[derive(LoraModel)]
pub struct Net {
    #[lora(rank)]
    fc: Linear,
    #[lora(skip)]
    cache: Option<Tensor>,
}

/// A trait with everything.
pub trait Step {
    /// A type.
    type Output<'a>
    where
        Self: 'a;
    /// A constant.
    const WIDTH: usize;
    /// With a generic parameter.
    fn step<'a, T: AsRef<str>>(&'a mut self, name: T) -> Self::Output<'a>;
    /// Not overridden.
    fn provided(&self) -> usize {
        Self::WIDTH
    }
    /// On the base only.
    fn special(&self) -> bool {
        false
    }
}

#[lora::forward]
impl Step for Net {
    type Output<'a> = (&'a Tensor, String);
    const WIDTH: usize = 3;

    fn step<'a, T: AsRef<str>>(&'a mut self, name: T) -> Self::Output<'a> {
        let empty = || {
            Tensor::zeros(
                Net::WIDTH,
                candle_core::DType::F32,
                &candle_core::Device::Cpu,
            )
        };
        if self.cache.is_none() {
            self.cache = empty().ok();
        }
        let name = format!("{}.{}", stringify!(Net), name.as_ref());
        match &self.cache {
            Some(cache) => (cache, name),
            None => unreachable!(),
        }
    }

    #[lora(skip)]
    fn special(&self) -> bool {
        self.fc.weight().rank() == 2
    }
}

#[lora::forward]
impl Net {
    /// A constructor.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn load(vb: VarBuilder<'_>) -> Result<Self> {
        let fc = candle_nn::linear(2, 2, vb)?;
        Ok(Self { fc, cache: None })
    }

    /// With keywords in the calls of macros.
    pub fn casts(&self, n: usize) -> Vec<f32> {
        assert!(n as f32 >= 0.0, "{} as f32", n as f32);
        vec![n as f32, if n > 1 { 1.0 } else { n as f32 }]
    }

    /// A builder of itself.
    #[must_use]
    pub fn without_cache(mut self) -> Self {
        self.cache = None;
        self
    }

    /// By value.
    pub fn into_cache(self) -> Option<Tensor> {
        self.cache
    }

    /// Without a receiver.
    #[must_use]
    pub const fn width() -> usize {
        2
    }

    fn private(&self, xs: &Tensor) -> Result<Tensor> {
        xs.i(0)?.apply(&self.fc)
    }
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.private(xs)
    }
}

mod elsewhere {
    use super::{LoraNet, Net};

    #[lora::forward(name = "LoraNet")]
    impl Net {
        pub(super) fn of_a_parent(&self) -> usize {
            super::Net::width()
        }
    }

    #[lora::forward]
    impl super::Net {
        pub(super) fn by_path(&self) -> usize {
            self.of_a_parent()
        }
    }
}

pub fn main() {
    let _: fn(&LoraNet) -> usize = LoraNet::by_path;
    let _: fn(&LoraNet) -> bool = LoraNet::special;
    let _: fn(LoraNet) -> Option<Tensor> = LoraNet::into_cache;
    assert_eq!((LoraNet::width(), LoraNet::WIDTH), (2, 3));
}
