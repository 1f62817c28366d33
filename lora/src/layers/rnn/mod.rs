//! Recurrent layers.
//!
//! Candle's `LSTM` and `GRU` keep their tensors private, and no result of theirs gives the tensors
//! back exactly. So the base layers stand here, with the names and constructors of candle's.

mod bias;
mod gates;
mod gru;
mod lstm;

pub use gru::{GRU, LoraGRU, gru};
pub use lstm::{LSTM, LoraLSTM, lstm};
