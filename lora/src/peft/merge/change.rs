//! What an adapter does to one tensor of a checkpoint.

use crate::Result;
use crate::adapter::{Form, dora, update};
use crate::file::Checkpoint;
use crate::peft::tensors::Tensors;
use candle_core::{DType, Tensor};
use indexmap::IndexMap;
use safetensors::tensor::{Dtype, TensorInfo};

/// What happens to one tensor, in this order. Names are keys of the adapter's file, except in
/// [`start`](Self::start).
#[derive(Debug, Default)]
pub(in crate::peft) struct Change {
    pub start: Start,
    pub low_rank: Option<FileUpdate>,
    /// A multiple of this is added.
    pub add: Option<(String, f64)>,
    /// These rows are replaced.
    pub rows: Option<(String, Vec<u32>)>,
}

/// What a tensor is before its update. The names of other tensors are those of the checkpoint.
#[derive(Debug, Default)]
pub(in crate::peft) enum Start {
    /// The base's tensor.
    #[default]
    Own,
    /// The adapter brings the tensor in full, under this key.
    File(String),
    /// The base's tensor of another name.
    Base(String),
    /// What another tensor is before its update: a head that no longer shares the embedding's.
    Before(String),
    /// Another tensor, merged: a head that shares the embedding's.
    Merged(String),
}

impl Change {
    /// The adapter brings the tensor in full.
    pub fn is_full(&self) -> bool {
        matches!(self.start, Start::File(_))
    }
}

/// The dtype and shape of a tensor of the result; `None` if it is in neither file.
pub(super) fn outcome(
    name: &str,
    changes: &IndexMap<String, Change>,
    base: &Checkpoint,
    adapter: &Tensors,
) -> Option<(Dtype, Vec<usize>)> {
    let of = |info: &TensorInfo| (info.dtype, info.shape.clone());
    let own = base.info(name);
    let (dtype, shape) = match changes.get(name).map(|change| &change.start) {
        None | Some(Start::Own) => of(own?),
        Some(Start::File(key)) => of(adapter.tensors().get(key)?),
        Some(Start::Base(other)) => of(base.info(other)?),
        Some(Start::Before(other) | Start::Merged(other)) => {
            outcome(other, changes, base, adapter)?
        }
    };
    // A tensor of the base keeps its dtype.
    Some((own.map_or(dtype, |own| own.dtype), shape))
}

#[derive(Debug)]
pub(in crate::peft) struct FileUpdate {
    pub a: String,
    pub b: String,
    pub magnitude: Option<String>,
    pub scaling: f64,
    pub form: Form,
}

impl FileUpdate {
    /// The weight with its update, in the weight's dtype. `read` gives tensors in the wider dtype
    /// of the computation, which takes about `piece` values at a time. `unmerged` is the base's weight,
    /// whose norms DoRA takes, where `weight` has other adapters in it.
    pub fn apply(
        &self,
        weight: &Tensor,
        unmerged: Option<&Tensor>,
        read: impl Fn(&str) -> Result<Tensor>,
        piece: usize,
    ) -> Result<Tensor> {
        let (a, b) = (read(&self.a)?, read(&self.b)?);
        let magnitude = self.magnitude.as_deref().map(read).transpose()?;
        let magnitude = magnitude.map(|m| m.flatten_all()).transpose()?;
        let (wide, scaling, form) = (a.dtype(), self.scaling, self.form);
        let output_dim = form.output_dim();
        let merge = |weight: Tensor,
                     unmerged: Option<Tensor>,
                     a: &Tensor,
                     b: &Tensor,
                     magnitude: Option<Tensor>| {
            let delta = form.delta(a, b, scaling)?;
            let sum = (weight + &delta)?;
            let Some(magnitude) = magnitude else {
                return Ok(sum);
            };
            let alone = unmerged.map(|unmerged| unmerged + delta).transpose()?;
            let norms = dora::norms(alone.as_ref().unwrap_or(&sum), output_dim)?;
            dora::scale_outputs(&sum, &dora::gain(&magnitude, &norms)?, output_dim)
        };
        let part = |from, count| {
            let part = |unmerged: &Tensor| unmerged.narrow(0, from, count)?.to_dtype(wide);
            unmerged.map(part).transpose()
        };
        Ok(match form {
            Form::Linear | Form::Conv { .. } => {
                in_pieces(weight, wide, piece, |weight, from, count| {
                    let magnitude = magnitude.as_ref().map(|m| m.narrow(0, from, count));
                    merge(
                        weight,
                        part(from, count)?,
                        &a,
                        &b.narrow(0, from, count)?,
                        magnitude.transpose()?,
                    )
                })?
            }
            Form::Transposed => {
                // DoRA's norm of a column is over all rows, so that it cannot be taken in pieces.
                let piece = if magnitude.is_some() {
                    usize::MAX
                } else {
                    piece
                };
                in_pieces(weight, wide, piece, |weight, from, count| {
                    let a = a.narrow(1, from, count)?;
                    merge(weight, part(from, count)?, &a, &b, magnitude.clone())
                })?
            }
            Form::Experts { count, transposed } => {
                let of_one = match transposed {
                    true => Form::Transposed,
                    false => Form::Linear,
                };
                in_pieces(weight, wide, 0, |weight, expert, _| {
                    let (a, b) = update::of_expert(&a, &b, expert, count)?;
                    weight.broadcast_add(&of_one.delta(&a, &b, scaling)?)
                })?
            }
        })
    }
}

/// Calls `f` for slices along the first dimension, each of about `piece` values, and joins the
/// results. `f` gets the slice, its first index and its length. Slices bound the memory that the
/// wider dtype takes.
fn in_pieces(
    weight: &Tensor,
    wide: DType,
    piece: usize,
    f: impl Fn(Tensor, usize, usize) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    let rows = weight.dim(0)?;
    let per_row = (weight.elem_count() / rows.max(1)).max(1);
    let step = (piece / per_row).max(1);
    let mut merged = Vec::new();
    for from in (0..rows).step_by(step) {
        let count = step.min(rows - from);
        let part = weight.narrow(0, from, count)?.to_dtype(wide)?;
        merged.push(f(part, from, count)?.to_dtype(weight.dtype())?);
    }
    match merged.as_slice() {
        [] => Ok(weight.clone()),
        [one] => Ok(one.clone()),
        _ => Tensor::cat(&merged, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(shape: &[usize], seed: u64) -> Tensor {
        let mut state = seed;
        let count: usize = shape.iter().product();
        let values = (0..count).map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
        });
        Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
    }

    /// Computed in pieces of any size, it is the same.
    #[test]
    fn pieces_make_no_difference() {
        let experts = |transposed| Form::Experts {
            count: 3,
            transposed,
        };
        type Case<'a> = (Form, &'a [usize], &'a [usize], &'a [usize], usize);
        let shapes: [Case; 6] = [
            (Form::Linear, &[5, 4], &[2, 4], &[5, 2], 5),
            (Form::Transposed, &[5, 4], &[2, 5], &[4, 2], 4),
            (
                Form::Conv { groups: 1 },
                &[5, 4, 3],
                &[2, 4, 3],
                &[5, 2, 1],
                5,
            ),
            (experts(false), &[3, 5, 4], &[6, 4], &[5, 6], 0),
            (experts(true), &[3, 5, 4], &[6, 5], &[4, 6], 0),
            (
                Form::Experts {
                    count: 1,
                    transposed: false,
                },
                &[1, 5, 4],
                &[2, 4],
                &[5, 2],
                0,
            ),
        ];
        for (form, w, a, b, magnitude) in shapes {
            let (w, a, b) = (random(w, 1), random(a, 2), random(b, 3));
            for dora in [false, true] {
                if dora && magnitude == 0 {
                    continue;
                }
                let low_rank = FileUpdate {
                    a: "a".into(),
                    b: "b".into(),
                    magnitude: dora.then(|| "m".into()),
                    scaling: 0.75,
                    form,
                };
                let read = |key: &str| match key {
                    "a" => Ok(a.clone()),
                    "b" => Ok(b.clone()),
                    _ => Ok(random(&[1, magnitude, 1], 4)),
                };
                let whole = low_rank.apply(&w, None, read, usize::MAX).unwrap();
                assert_eq!(whole.dims(), w.dims());
                for piece in [0, 7, 9, 24] {
                    let parts = low_rank.apply(&w, None, read, piece).unwrap();
                    let difference = (&parts - &whole).unwrap().abs().unwrap().max_all().unwrap();
                    assert!(
                        difference.to_scalar::<f64>().unwrap() < 1e-14,
                        "{form:?} {piece}"
                    );
                }
                assert!(
                    (&whole - &w)
                        .unwrap()
                        .abs()
                        .unwrap()
                        .max_all()
                        .unwrap()
                        .to_scalar::<f64>()
                        .unwrap()
                        > 1e-3
                );
            }
        }
    }
}
