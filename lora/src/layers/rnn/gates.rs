//! The parameters of a recurrent layer, under PyTorch's names.

use super::bias::Bias;
use crate::layers::Weight;
use crate::{Builder, Cursor, CursorMut, Lora, LoraModule, Result, ops};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder};

/// The parameters of a recurrent layer whose gates see the input and the last hidden state.
#[derive(Clone, Debug)]
pub(super) struct Gates<W = Weight, B = Bias> {
    weight_ih: W,
    weight_hh: W,
    bias_ih: Option<B>,
    bias_hh: Option<B>,
    /// What the parameters' names end in: `_l0`, `_l1_reverse`.
    suffix: String,
}

/// The parameters of the LoRA layer.
pub(super) type LoraGates = Gates<Lora<Weight>, Lora<Bias>>;

/// How the parameters start where the checkpoint has none.
pub(super) struct Inits {
    pub(super) weight_ih: Init,
    pub(super) weight_hh: Init,
    pub(super) bias_ih: Option<Init>,
    pub(super) bias_hh: Option<Init>,
}

impl Gates {
    /// Loads the parameters, of which `count` gates share each.
    pub(super) fn load(
        (inputs, hidden, count): (usize, usize, usize),
        suffix: String,
        inits: Inits,
        vb: &VarBuilder<'_>,
    ) -> candle_core::Result<Self> {
        let rows = count * hidden;
        let weight = |name: &str, columns: usize, init: Init| {
            let weight = vb.get_with_hints((rows, columns), &format!("{name}{suffix}"), init)?;
            Weight::new(weight).map_err(candle_core::Error::wrap)
        };
        let bias = |name: &str, init: Option<Init>| {
            let bias = init.map(|init| vb.get_with_hints(rows, &format!("{name}{suffix}"), init));
            bias.transpose().map(|bias| bias.map(Bias))
        };
        Ok(Self {
            weight_ih: weight("weight_ih", inputs, inits.weight_ih)?,
            weight_hh: weight("weight_hh", hidden, inits.weight_hh)?,
            bias_ih: bias("bias_ih", inits.bias_ih)?,
            bias_hh: bias("bias_hh", inits.bias_hh)?,
            suffix,
        })
    }

    pub(super) fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraGates> {
        let suffix = &self.suffix;
        let bias = |cx: &mut Builder<'_>, name: &str, bias: &Option<Bias>| {
            let name = format!("{name}{suffix}");
            bias.as_ref().map(|bias| cx.field(&name, bias)).transpose()
        };
        Ok(Gates {
            weight_ih: cx.field(&format!("weight_ih{suffix}"), &self.weight_ih)?,
            weight_hh: cx.field(&format!("weight_hh{suffix}"), &self.weight_hh)?,
            bias_ih: bias(cx, "bias_ih", &self.bias_ih)?,
            bias_hh: bias(cx, "bias_hh", &self.bias_hh)?,
            suffix: suffix.clone(),
        })
    }

    /// The tensors to compute with.
    pub(super) fn tensors(&self) -> candle_core::Result<Tensors> {
        let bias = |bias: &Option<Bias>| bias.as_ref().map(|bias| bias.0.clone());
        Ok(Tensors {
            weight_ih: self.weight_ih.tensor()?,
            weight_hh: self.weight_hh.tensor()?,
            bias_ih: bias(&self.bias_ih),
            bias_hh: bias(&self.bias_hh),
        })
    }
}

impl LoraGates {
    pub(super) fn to_base(&self) -> Result<Gates> {
        Ok(Gates {
            weight_ih: self.weight_ih.to_base()?,
            weight_hh: self.weight_hh.to_base()?,
            bias_ih: self.bias_ih.to_base()?,
            bias_hh: self.bias_hh.to_base()?,
            suffix: self.suffix.clone(),
        })
    }

    pub(super) fn visit(&self, cursor: &mut Cursor<'_>) {
        let suffix = &self.suffix;
        cursor.field(&format!("weight_ih{suffix}"), &self.weight_ih);
        cursor.field(&format!("weight_hh{suffix}"), &self.weight_hh);
        cursor.field(&format!("bias_ih{suffix}"), &self.bias_ih);
        cursor.field(&format!("bias_hh{suffix}"), &self.bias_hh);
    }

    pub(super) fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        let suffix = &self.suffix;
        cursor.field(&format!("weight_ih{suffix}"), &mut self.weight_ih);
        cursor.field(&format!("weight_hh{suffix}"), &mut self.weight_hh);
        cursor.field(&format!("bias_ih{suffix}"), &mut self.bias_ih);
        cursor.field(&format!("bias_hh{suffix}"), &mut self.bias_hh);
    }

    /// The tensors to compute with: the weights with the active updates.
    pub(super) fn tensors(&self) -> candle_core::Result<Tensors> {
        Ok(Tensors {
            weight_ih: self.weight_ih.tensor()?,
            weight_hh: self.weight_hh.tensor()?,
            bias_ih: self.bias_ih.as_ref().map(|bias| bias.seen()),
            bias_hh: self.bias_hh.as_ref().map(|bias| bias.seen()),
        })
    }
}

/// The tensors that one pass over a sequence computes with.
pub(super) struct Tensors {
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Option<Tensor>,
    bias_hh: Option<Tensor>,
}

impl Tensors {
    /// What the gates see of the input, (.., gates · hidden).
    pub(super) fn of_input(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        ops::linear(xs, &self.weight_ih, self.bias_ih.as_ref())
    }

    /// What the gates see of the last hidden state, (batch, gates · hidden).
    pub(super) fn of_hidden(&self, h: &Tensor) -> candle_core::Result<Tensor> {
        ops::linear(h, &self.weight_hh, self.bias_hh.as_ref())
    }

    /// A hidden state of zeros, (batch, hidden).
    pub(super) fn zeros(&self, batch: usize) -> candle_core::Result<Tensor> {
        let (hidden, dtype): (usize, DType) = (self.weight_hh.dim(1)?, self.weight_hh.dtype());
        let device: &Device = self.weight_hh.device();
        Tensor::zeros((batch, hidden), dtype, device)
    }

    /// The states of a sequence, (batch, time, features): `step` makes the next of what the gates see
    /// of the input and of the last.
    pub(super) fn states<S>(
        &self,
        xs: &Tensor,
        init: &S,
        step: impl Fn(&Self, &Tensor, &S) -> candle_core::Result<S>,
    ) -> candle_core::Result<Vec<S>> {
        let (_, length, _) = xs.dims3()?;
        // One product for the whole sequence.
        let of_input = self.of_input(xs)?;
        let mut states: Vec<S> = Vec::with_capacity(length);
        for time in 0..length {
            let of_input = of_input.narrow(1, time, 1)?.squeeze(1)?;
            let next = step(self, &of_input, states.last().unwrap_or(init))?;
            states.push(next);
        }
        Ok(states)
    }
}
