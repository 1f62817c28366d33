//! The adapters of a model as training has left them, to go on from there.
//!
//! Unlike an adapter in PEFT's format, a state is for this crate alone. It keeps what PEFT's format has
//! no place for: an adapter of a residual base with the values that it started from, which adapters
//! act, which are trained, several adapters at once.

mod form;
mod load;
mod save;

pub(crate) use form::ModelForm;
pub(crate) use load::load;
pub(crate) use save::save;

use crate::path::join;
use candle_core::{Device, Result, Tensor};

/// The key of an adapter's tensor with this name in its layer.
fn of_adapter(path: &str, name: &str) -> String {
    join("adapter", &join(path, name))
}

/// The key of A or B as an adapter of a residual base started.
fn of_start(path: &str, name: &str) -> String {
    join("start", &join(path, name))
}

/// The key of an adapter's copy of a layer's own parameter.
fn of_copy(adapter: &str, path: &str, name: &str) -> String {
    join("copy", &join(adapter, &join(path, name)))
}

/// The key of a trained tensor that is a field of the model.
fn of_field(path: &str) -> String {
    join("field", path)
}

/// A number that two weights share only if they are equal, for all that chance allows: FNV-1a over
/// eight bytes at a time.
fn fingerprint(weight: &Tensor) -> Result<String> {
    let weight = weight.detach().to_device(&Device::Cpu)?.contiguous()?;
    let bytes = safetensors::View::data(&weight);
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3);
    }
    Ok(format!("{hash:016x}"))
}
