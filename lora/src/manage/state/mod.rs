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

use crate::adapter::copies::Own;
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

/// How many values of a tensor are looked at.
const SAMPLE: usize = 1 << 16;

/// A number that two layers of a base model share only if their parameters are equal, for all that
/// chance allows. Of a large tensor it looks at values at equal distances.
fn fingerprint(own: &[Own]) -> Result<String> {
    // FNV-1a over eight bytes at a time.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut take = |bytes: &[u8]| {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for Own { param, blocks, .. } in own {
        take(format!("{:?}{:?}", param.tensor.dtype(), param.tensor.dims()).as_bytes());
        match blocks {
            Some(blocks) => {
                take(format!("{:?}", blocks.dtype()).as_bytes());
                take(&blocks.data()?);
            }
            None => take(&safetensors::View::data(&sample(&param.tensor)?)),
        }
    }
    Ok(format!("{hash:016x}"))
}

fn sample(tensor: &Tensor) -> Result<Tensor> {
    let flat = tensor.detach().flatten_all()?;
    let count = flat.elem_count();
    if count <= SAMPLE {
        return flat.to_device(&Device::Cpu)?.contiguous();
    }
    let places = (0..count as i64).step_by(count.div_ceil(SAMPLE));
    let places = Tensor::from_iter(places, flat.device())?;
    flat.index_select(&places, 0)?.to_device(&Device::Cpu)
}
