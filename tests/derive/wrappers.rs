//! A rank on a struct, and a struct called `Model`.

use candle_core::{DType, Result, Tensor};
use candle_nn::{LayerNorm, Linear, Module};
use lora::{LoraConfig, LoraModel, LoraModule};
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
fn a_rank_is_for_the_layers_below_that_take_one() -> lora::Result<()> {
    let traced = |seed| Traced {
        inner: Linear::new(fixed((4, 4), DType::F32, seed), None),
        norm: LayerNorm::new(
            fixed(4, DType::F32, seed + 1),
            fixed(4, DType::F32, seed + 2),
            1e-5,
        ),
        name: "layer".into(),
    };
    let base = Model {
        first: traced(1),
        rest: vec![Some(traced(4)), None, Some(traced(7))],
        plain: traced(10),
    };
    let model: LoraOfModel = base.to_lora(&LoraConfig::new(2))?;
    let rows = model.summary().rows.into_iter();
    let ranks: Vec<_> = rows.filter_map(|row| Some((row.path, row.rank?))).collect();
    let expected = [("first.inner", 3), ("rest.0.inner", 2), ("rest.2.inner", 2)];
    assert_eq!(ranks, expected.map(|(path, rank)| (path.to_string(), rank)));
    let xs = fixed((2, 4), DType::F32, 20);
    model.check_gradients(|model| Ok(model.forward(&xs)?.sqr()?.mean_all()?))?;
    Ok(())
}
