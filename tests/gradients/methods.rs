//! Methods of candle's tensors whose backward pass is wrong or missing, called in every spelling.

#![expect(clippy::useless_vec, reason = "a method inside of a macro is the case")]

use super::spellings::{net, run, same};
use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{Linear, Module};
use lora::LoraModel;
use lora::ops::{
    conv_transpose1d, conv_transpose2d, conv1d, conv2d, max_pool2d, scatter, scatter_add,
    upsample_nearest2d,
};
use lora_tests::{assert_close, fixed};
use std::sync::Arc;

/// Places in the last dimension of (2, 3, 4): some twice, others never.
fn places() -> Result<Tensor> {
    let places = (0..24u32).map(|i| i * i % 4);
    Tensor::from_iter(places, &Device::Cpu)?.reshape((2, 3, 4))
}

/// A type of the user's with methods of such names.
struct Router(f64);

impl Router {
    fn scatter(&self, xs: &Tensor) -> Result<Tensor> {
        xs * self.0
    }
}

/// The user's own trait, for a type of another crate.
trait Pool {
    fn max_pool2d(&self, size: f64) -> f64;
}

impl Pool for f64 {
    fn max_pool2d(&self, size: f64) -> f64 {
        self * size
    }
}

same!(on_a_value: |_this, xs| { xs.scatter_add(&places()?, &xs.sqr()?, 2) },
    { scatter_add(&xs, &places()?, &xs.sqr()?, 2) });

same!(on_a_reference: |_this, xs| {
        let xs = &xs;
        xs.scatter(&places()?, &xs.sqr()?, D::Minus1)
    },
    { scatter(&xs, &places()?, &xs.sqr()?, 2) });

same!(on_references_of_references: |_this, xs| {
        let all = [&xs];
        let mut sums = all.iter().map(|xs| xs.scatter_add(&places()?, &xs.sqr()?, 2));
        sums.next().unwrap()
    },
    { scatter_add(&xs, &places()?, &xs.sqr()?, 2) });

same!(on_a_mutable_reference: |_this, xs| {
    let mut xs = xs.clone();
    let xs = &mut xs;
    *xs = xs.scatter_add(&places()?, &xs.sqr()?, 2)?;
    xs.scatter(&places()?, &xs.exp()?, 2)
},
{
    let xs = scatter_add(&xs, &places()?, &xs.sqr()?, 2)?;
    scatter(&xs, &places()?, &xs.exp()?, 2)
});

same!(on_what_is_shared: |_this, xs| {
        let (shared, boxed) = (Arc::new(xs.clone()), Box::new(xs.clone()));
        shared.scatter_add(&places()?, &boxed, 2)? + boxed.scatter(&places()?, &shared.sqr()?, 2)?
    },
    { scatter_add(&xs, &places()?, &xs, 2)? + scatter(&xs, &places()?, &xs.sqr()?, 2)? });

same!(on_a_variable: |_this, xs| {
    let start = Var::zeros((2, 3, 4), DType::F32, &Device::Cpu)?;
    start.scatter_add(&places()?, &xs, 2)
},
{
    let start = Tensor::zeros((2, 3, 4), DType::F32, &Device::Cpu)?;
    scatter_add(&start, &places()?, &xs, 2)
});

same!(chained: |_this, xs| {
    xs.unsqueeze(0)?.upsample_nearest2d(4, 5)?.max_pool2d_with_stride((2, 2), (1, 1))?.squeeze(0)
},
{
    let xs = upsample_nearest2d(&xs.unsqueeze(0)?, 4, 5)?;
    max_pool2d(&xs, 2, 1)?.squeeze(0)
});

same!(by_a_path: |_this, xs| {
    let kernel = Tensor::ones((3, 1, 1), DType::F32, &Device::Cpu)?;
    let ys = Tensor::conv_transpose1d(&xs, &kernel, 0, 0, 1, 1, 3)?;
    candle_core::Tensor::scatter_add::<usize>(&ys, &places()?, &xs, 2)
},
{
    let kernel = Tensor::ones((3, 1, 1), DType::F32, &Device::Cpu)?;
    let config = candle_nn::ConvTranspose1dConfig { groups: 3, ..Default::default() };
    let ys = conv_transpose1d(&xs, &kernel, None, &config)?;
    scatter_add(&ys, &places()?, &xs, 2)
});

same!(convolutions: |_this, xs| {
    let kernel = Tensor::ones((3, 1, 3), DType::F32, &Device::Cpu)?;
    let ys = xs.conv1d(&kernel, 1, 1, 1, 3)?.conv1d_with_algo(&kernel, 1, 1, 1, 3, None)?;
    let kernel = kernel.reshape((3, 1, 1, 3))?;
    let ys = ys.unsqueeze(2)?.conv2d(&kernel.transpose(0, 1)?, 0, 1, 1, 1)?;
    ys.conv_transpose2d(&kernel.transpose(0, 1)?, 0, 0, 1, 1)?.squeeze(2)
},
{
    let kernel = Tensor::ones((3, 1, 3), DType::F32, &Device::Cpu)?;
    let config = candle_nn::Conv1dConfig { padding: 1, groups: 3, ..Default::default() };
    let ys = conv1d(&conv1d(&xs, &kernel, None, &config)?, &kernel, None, &config)?;
    let kernel = kernel.reshape((1, 3, 1, 3))?;
    let ys = conv2d(&ys.unsqueeze(2)?, &kernel, None, &Default::default())?;
    conv_transpose2d(&ys, &kernel, None, &Default::default())?.squeeze(2)
});

same!(in_a_macro: |_this, xs| {
        let parts = vec![xs.scatter_add(&places()?, &xs.sqr()?, 2)?];
        parts[0].sqr()
    },
    { scatter_add(&xs, &places()?, &xs.sqr()?, 2)?.sqr() });

same!(within_an_argument: |_this, xs| {
        xs.scatter(&places()?, &xs.scatter_add(&places()?, &xs, 2)?, 2)
    },
    { scatter(&xs, &places()?, &scatter_add(&xs, &places()?, &xs, 2)?, 2) });

same!(methods_of_the_users_own: |_this, xs| {
        let (router, two) = (Router(3.0), 2.0f64);
        let shared = &Arc::new(Router(two.max_pool2d(1.5)));
        router.scatter(&xs)? + shared.scatter(&xs)?
    },
    { (&xs * 3.0)? + (&xs * 3.0)? });

/// A model's own method of such a name may change the model.
#[test]
fn a_method_that_changes_the_model() {
    #[derive(Clone, LoraModel)]
    struct Counting {
        #[lora(rank)]
        fc: Linear,
        calls: usize,
    }

    #[lora::forward]
    impl Counting {
        fn scatter(&mut self, xs: &Tensor) -> Result<Tensor> {
            self.calls += 1;
            xs.apply(&self.fc)
        }

        fn forward(&mut self, xs: &Tensor) -> Result<Tensor> {
            let ys = self.scatter(xs)?;
            self.scatter(&ys)
        }
    }

    let fc = Linear::new(fixed((4, 4), DType::F32, 1), None);
    let mut base = Counting { fc, calls: 0 };
    let mut model = base.to_lora(&lora::LoraConfig::new(2)).unwrap();
    let xs = fixed((2, 4), DType::F32, 2);
    let expected = base.forward(&xs).unwrap();
    assert_close("output", &model.forward(&xs).unwrap(), &expected, 1e-6);
    assert_eq!((model.calls, base.calls), (2, 2));
}
