//! Gated recurrent units.

use super::gates::{Gates, Inits, LoraGates, Tensors};
use crate::{Builder, Cursor, CursorMut, LoraLayer, LoraModel, LoraModule, Result};
use candle_core::Tensor;
use candle_nn::ops::sigmoid;
use candle_nn::rnn::{GRUConfig, GRUState};
use candle_nn::{RNN, VarBuilder};

/// A GRU layer as [`candle_nn::GRU`], whose tensors candle keeps private: in your model, name this
/// type instead. Constructors, configuration, state and parameters' names are the same. See
/// [`LSTM`](super::LSTM) for an example.
#[derive(Clone, Debug)]
#[allow(clippy::upper_case_acronyms, reason = "candle's name")]
pub struct GRU {
    gates: Gates,
    config: GRUConfig,
}

/// Creates a [`GRU`] layer.
///
/// # Errors
/// If a parameter is missing or has another shape.
pub fn gru(
    in_dim: usize,
    hidden_dim: usize,
    config: GRUConfig,
    vb: VarBuilder<'_>,
) -> candle_core::Result<GRU> {
    GRU::new(in_dim, hidden_dim, config, vb)
}

impl GRU {
    /// Creates a layer.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(
        in_dim: usize,
        hidden_dim: usize,
        config: GRUConfig,
        vb: VarBuilder<'_>,
    ) -> candle_core::Result<Self> {
        let inits = Inits {
            weight_ih: config.w_ih_init,
            weight_hh: config.w_hh_init,
            bias_ih: config.b_ih_init,
            bias_hh: config.b_hh_init,
        };
        let gates = Gates::load((in_dim, hidden_dim, 3), "_l0".into(), inits, &vb)?;
        Ok(Self { gates, config })
    }

    /// The configuration.
    pub fn config(&self) -> &GRUConfig {
        &self.config
    }
}

/// The LoRA counterpart of [`GRU`].
///
/// As in PEFT its weights take an adapter each through
/// [`target_parameters`](crate::LoraConfig::target_parameters). Weights and biases can be trained in full.
#[derive(Clone, Debug)]
pub struct LoraGRU {
    gates: LoraGates,
    config: GRUConfig,
}

impl LoraGRU {
    /// The configuration.
    pub fn config(&self) -> &GRUConfig {
        &self.config
    }
}

/// The next state, from what the gates see of the input.
fn step(tensors: &Tensors, of_input: &Tensor, state: &GRUState) -> candle_core::Result<GRUState> {
    let of_input = of_input.chunk(3, 1)?;
    let of_hidden = tensors.of_hidden(&state.h)?.chunk(3, 1)?;
    let reset = sigmoid(&(&of_input[0] + &of_hidden[0])?)?;
    let update = sigmoid(&(&of_input[1] + &of_hidden[1])?)?;
    let new = (&of_input[2] + (reset * &of_hidden[2])?)?.tanh()?;
    let h = ((&update * &state.h)? - ((&update - 1.)? * new)?)?;
    Ok(GRUState { h })
}

macro_rules! rnn {
    ($ty:ty) => {
        impl RNN for $ty {
            type State = GRUState;

            fn zero_state(&self, batch_dim: usize) -> candle_core::Result<GRUState> {
                let zeros = self.gates.tensors()?.zeros(batch_dim)?;
                Ok(GRUState { h: zeros })
            }

            fn step(&self, input: &Tensor, state: &GRUState) -> candle_core::Result<GRUState> {
                let tensors = self.gates.tensors()?;
                step(&tensors, &tensors.of_input(input)?, state)
            }

            fn seq_init(
                &self,
                input: &Tensor,
                init_state: &GRUState,
            ) -> candle_core::Result<Vec<GRUState>> {
                self.gates.tensors()?.states(input, init_state, step)
            }

            fn states_to_tensor(&self, states: &[GRUState]) -> candle_core::Result<Tensor> {
                let states: Vec<&Tensor> = states.iter().map(GRUState::h).collect();
                // As candle's: (batch, time · hidden).
                Tensor::cat(&states, 1)
            }
        }
    };
}

rnn!(GRU);
rnn!(LoraGRU);

impl LoraModel for GRU {
    type Lora = LoraGRU;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraGRU> {
        Ok(LoraGRU {
            gates: self.gates.adapt(cx)?,
            config: self.config,
        })
    }
}

impl LoraLayer for GRU {}

impl LoraModule for LoraGRU {
    type Base = GRU;

    fn to_base(&self) -> Result<GRU> {
        Ok(GRU {
            gates: self.gates.to_base()?,
            config: self.config,
        })
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        self.gates.visit(cursor);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        self.gates.visit_mut(cursor);
    }
}
