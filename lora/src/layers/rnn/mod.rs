//! Recurrent layers.
//!
//! Candle's `LSTM` and `GRU` keep their tensors private, and no result of theirs gives the tensors
//! back exactly. So the base layers stand here, with the names and constructors of candle's.

/// Writes what follows from a layer's gates, configuration and `step`: the LoRA type, candle's trait for
/// both, and the conversions. `$join` makes one tensor of all states, `$zero` a state of zeros.
macro_rules! recurrent {
    ($base:ident, $lora:ident, $config:ident, $state:ident, $join:path, $zero:expr) => {
        #[doc = concat!("The LoRA counterpart of [`", stringify!($base), "`].")]
        ///
        /// As in PEFT its weights take an adapter each through
        /// [`target_parameters`](crate::LoraConfig::target_parameters). Weights and biases can be trained
        /// in full.
        #[derive(Clone, Debug)]
        pub struct $lora {
            gates: super::gates::LoraGates,
            config: $config,
        }

        recurrent!(@rnn $base, $config, $state, $join, $zero);
        recurrent!(@rnn $lora, $config, $state, $join, $zero);

        impl crate::LoraModel for $base {
            type Lora = $lora;

            fn adapt(&self, cx: &mut crate::Builder<'_>) -> crate::Result<$lora> {
                Ok($lora {
                    gates: self.gates.adapt(cx)?,
                    config: self.config,
                })
            }
        }

        impl crate::LoraLayer for $base {}

        impl crate::LoraModule for $lora {
            type Base = $base;

            fn to_base(&self) -> crate::Result<$base> {
                Ok($base {
                    gates: self.gates.to_base()?,
                    config: self.config,
                })
            }

            fn visit(&self, cursor: &mut crate::Cursor<'_>) {
                self.gates.visit(cursor);
            }

            fn visit_mut(&mut self, cursor: &mut crate::CursorMut<'_>) {
                self.gates.visit_mut(cursor);
            }
        }
    };

    (@rnn $ty:ident, $config:ident, $state:ident, $join:path, $zero:expr) => {
        impl $ty {
            /// The configuration.
            pub fn config(&self) -> &$config {
                &self.config
            }
        }

        impl candle_nn::RNN for $ty {
            type State = $state;

            fn zero_state(&self, batch_dim: usize) -> candle_core::Result<$state> {
                let zero = $zero;
                Ok(zero(self.gates.tensors()?.zeros(batch_dim)?))
            }

            fn step(&self, input: &Tensor, state: &$state) -> candle_core::Result<$state> {
                let tensors = self.gates.tensors()?;
                step(&tensors, &tensors.of_input(input)?, state)
            }

            fn seq_init(
                &self,
                input: &Tensor,
                init_state: &$state,
            ) -> candle_core::Result<Vec<$state>> {
                self.gates.tensors()?.states(input, init_state, step)
            }

            fn states_to_tensor(&self, states: &[$state]) -> candle_core::Result<Tensor> {
                let states: Vec<&Tensor> = states.iter().map($state::h).collect();
                $join(&states, 1)
            }
        }
    };
}

mod bias;
mod gates;
mod gru;
mod lstm;

pub use gru::{GRU, LoraGRU, gru};
pub use lstm::{LSTM, LoraLSTM, lstm};
