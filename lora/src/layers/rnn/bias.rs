//! A bias without a layer around it.

use crate::adapter::{Access, Copies, release, seen};
use crate::config::Kind;
use crate::{Builder, Cursor, CursorMut, Layer, LoraModel, LoraModule, Param, Result, Role};
use candle_core::Tensor;

/// A bias of a recurrent layer, whose path is its own name.
#[derive(Clone, Debug)]
pub struct Bias(pub Tensor);

/// A [`Bias`] with room for the copies of adapters.
#[derive(Clone, Debug)]
pub struct LoraBias {
    tensor: Tensor,
    training: bool,
    copies: Copies,
}

impl LoraBias {
    /// The bias as the forward pass sees it.
    pub fn seen(&self) -> Tensor {
        seen(&self.tensor, self.training)
    }
}

impl LoraModel for Bias {
    type Lora = LoraBias;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraBias> {
        let layer = LoraBias {
            tensor: cx.parameter(&self.0),
            training: true,
            copies: Copies::default(),
        };
        cx.layer(layer)
    }
}

impl LoraModule for LoraBias {
    type Base = Bias;

    fn to_base(&self) -> Result<Bias> {
        release(&self.tensor).map(Bias)
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.layer(self);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.layer(self);
    }
}

impl Layer for LoraBias {
    fn kind(&self) -> Kind {
        Kind::Tensor
    }

    fn params(&self) -> Vec<Param<&Tensor>> {
        vec![Param::new("", Role::Base, &self.tensor)]
    }

    fn params_mut(&mut self, _: Access) -> Vec<Param<&mut Tensor>> {
        vec![Param::new("", Role::Base, &mut self.tensor)]
    }

    fn set_training(&mut self, training: bool) {
        self.training = training;
    }

    fn copies(&self) -> Option<&Copies> {
        Some(&self.copies)
    }

    fn copies_mut(&mut self, _: Access) -> Option<&mut Copies> {
        Some(&mut self.copies)
    }
}
