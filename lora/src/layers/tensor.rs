//! A tensor that is a field of a model.

use crate::adapter::Access;
use crate::adapter::release;
use crate::config::Kind;
use crate::{Builder, Cursor, CursorMut, Layer, LoraModel, LoraModule, Param, Result, Role};
use candle_core::Tensor;

/// A tensor is a parameter of its own: frozen, or a variable where it is trained. Its path is its
/// field's. Integer tensors are buffers.
///
/// Values that are no parameters, such as rotary tables, can stay plain fields too; mark them
/// `#[lora(skip)]` to leave them out of counts and files.
impl LoraModel for Tensor {
    type Lora = Tensor;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<Tensor> {
        let tensor = cx.parameter(self);
        cx.layer(tensor)
    }
}

impl LoraModule for Tensor {
    type Base = Tensor;

    fn to_base(&self) -> Result<Tensor> {
        release(self)
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.layer(self);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.layer(self);
    }

    fn as_tensor(&self) -> Option<&Tensor> {
        Some(self)
    }
}

impl Layer for Tensor {
    fn kind(&self) -> Kind {
        Kind::Tensor
    }

    fn params(&self) -> Vec<Param<&Tensor>> {
        vec![Param::new("", role(self), self)]
    }

    fn params_mut(&mut self, _: Access) -> Vec<Param<&mut Tensor>> {
        vec![Param::new("", role(self), self)]
    }
}

fn role(tensor: &Tensor) -> Role {
    if tensor.dtype().is_float() {
        Role::Base
    } else {
        Role::Buffer
    }
}
