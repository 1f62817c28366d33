//! A checkpoint of which some values are others.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

/// The tensors of a builder as `change` makes them, by name. `None` leaves a tensor as it is.
pub fn changed<'a>(
    vb: VarBuilder<'a>,
    change: impl Fn(&str, &Tensor) -> Option<Result<Tensor>> + Send + Sync + 'a,
) -> VarBuilder<'a> {
    let (dtype, device) = (vb.dtype(), vb.device().clone());
    let backend = Changed {
        vb,
        change: Box::new(change),
    };
    VarBuilder::from_backend(Box::new(backend), dtype, device)
}

type Change<'a> = dyn Fn(&str, &Tensor) -> Option<Result<Tensor>> + Send + Sync + 'a;

struct Changed<'a> {
    vb: VarBuilder<'a>,
    change: Box<Change<'a>>,
}

impl SimpleBackend for Changed<'_> {
    fn get(&self, s: Shape, name: &str, h: Init, _: DType, _: &Device) -> Result<Tensor> {
        let tensor = self.vb.get_with_hints(s, name, h)?;
        (self.change)(name, &tensor).unwrap_or(Ok(tensor))
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        self.vb.get_unchecked(name)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.vb.contains_tensor(name)
    }
}
