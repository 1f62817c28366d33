//! Gated recurrent units.

use super::gates::{Gates, Inits, Tensors};
use candle_core::Tensor;
use candle_nn::VarBuilder;
use candle_nn::ops::sigmoid;
use candle_nn::rnn::{GRUConfig, GRUState};

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

// States follow each other as candle's do: (batch, time · hidden).
recurrent!(GRU, LoraGRU, GRUConfig, GRUState, Tensor::cat, |h| {
    GRUState { h }
});
