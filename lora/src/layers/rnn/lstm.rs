//! Long short-term memory.

use super::gates::{Gates, Inits, Tensors};
use candle_core::Tensor;
use candle_nn::VarBuilder;
use candle_nn::ops::sigmoid;
use candle_nn::rnn::{Direction, LSTMConfig, LSTMState};

/// An LSTM layer as [`candle_nn::LSTM`], whose tensors candle keeps private: in your model, name this
/// type instead. Constructors, configuration, state and parameters' names are the same.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::rnn::LSTMConfig;
/// use candle_nn::{RNN, VarBuilder};
/// use lora::layers::{LSTM, lstm};
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// #[derive(LoraModel)]
/// struct Net { rnn: LSTM }
///
/// let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
/// let net = Net { rnn: lstm(3, 4, LSTMConfig::default(), vb)? };
/// let config = LoraConfig::new(2).target_parameters(["rnn.weight_ih_l0"]);
/// let model = net.to_lora(&config)?;
/// let states = model.rnn.seq(&Tensor::ones((1, 5, 3), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(model.rnn.states_to_tensor(&states)?.dims(), [1, 5, 4]);
/// assert_eq!(model.non_trainable()[0].path, "rnn.weight_ih_l0");
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug)]
#[allow(clippy::upper_case_acronyms, reason = "candle's name")]
pub struct LSTM {
    gates: Gates,
    config: LSTMConfig,
}

/// Creates an [`LSTM`] layer.
///
/// # Errors
/// If a parameter is missing or has another shape.
pub fn lstm(
    in_dim: usize,
    hidden_dim: usize,
    config: LSTMConfig,
    vb: VarBuilder<'_>,
) -> candle_core::Result<LSTM> {
    LSTM::new(in_dim, hidden_dim, config, vb)
}

impl LSTM {
    /// Creates a layer.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(
        in_dim: usize,
        hidden_dim: usize,
        config: LSTMConfig,
        vb: VarBuilder<'_>,
    ) -> candle_core::Result<Self> {
        let direction = match config.direction {
            Direction::Forward => "",
            Direction::Backward => "_reverse",
        };
        let suffix = format!("_l{}{direction}", config.layer_idx);
        let inits = Inits {
            weight_ih: config.w_ih_init,
            weight_hh: config.w_hh_init,
            bias_ih: config.b_ih_init,
            bias_hh: config.b_hh_init,
        };
        let gates = Gates::load((in_dim, hidden_dim, 4), suffix, inits, &vb)?;
        Ok(Self { gates, config })
    }
}

/// The next state, from what the gates see of the input.
fn step(tensors: &Tensors, of_input: &Tensor, state: &LSTMState) -> candle_core::Result<LSTMState> {
    let gates = (of_input + tensors.of_hidden(&state.h)?)?.chunk(4, 1)?;
    let [input, forget, cell, output] = [&gates[0], &gates[1], &gates[2], &gates[3]];
    let kept = (sigmoid(forget)? * &state.c)?;
    let c = (kept + (sigmoid(input)? * cell.tanh()?)?)?;
    let h = (sigmoid(output)? * c.tanh()?)?;
    Ok(LSTMState { h, c })
}

recurrent!(
    LSTM,
    LoraLSTM,
    LSTMConfig,
    LSTMState,
    Tensor::stack,
    |zeros| { LSTMState::new(Tensor::clone(&zeros), zeros) }
);
