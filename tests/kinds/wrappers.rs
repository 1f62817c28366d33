//! A rank on a struct, and a struct called `Model`.

use super::{F32, linear, live, norm};
use candle_core::{Result, Tensor};
use candle_nn::{LayerNorm, Linear, Module};
use lora::{LoraModel, LoraModule};
use lora_tests::fixed;

/// As libraries wrap a layer to log its calls.
#[derive(Clone, Debug, LoraModel)]
struct Traced {
    inner: Linear,
    norm: LayerNorm,
    name: String,
}

#[lora::forward]
impl Module for Traced {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.norm.forward(&xs.apply(&self.inner)?)
    }
}

/// Its LoRA type is not called as the trait, which is in scope.
#[derive(Clone, Debug, LoraModel)]
struct Model {
    #[lora(rank = 3)]
    first: Traced,
    #[lora(rank)]
    rest: Vec<Option<Traced>>,
    plain: Traced,
}

#[lora::forward]
impl Module for Model {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = xs.apply(&self.first)?;
        for part in self.rest.iter().flatten() {
            xs = xs.apply(part)?;
        }
        xs.apply(&self.plain)
    }
}

#[test]
fn a_rank_is_for_the_layers_below_that_take_one() {
    let traced = |seed| Traced {
        inner: linear(4, 4, seed),
        norm: norm(4, seed + 2),
        name: "layer".into(),
    };
    let base = Model {
        first: traced(1),
        rest: vec![Some(traced(4)), None, Some(traced(7))],
        plain: traced(10),
    };
    let model: LoraOfModel = live("Model", &base, &fixed((2, 4), F32, 20));
    let rows = model.summary().rows.into_iter();
    let ranks: Vec<_> = rows.filter_map(|row| Some((row.path, row.rank?))).collect();
    let expected = [("first.inner", 3), ("rest.0.inner", 2), ("rest.2.inner", 2)];
    assert_eq!(ranks, expected.map(|(path, rank)| (path.to_string(), rank)));
}
