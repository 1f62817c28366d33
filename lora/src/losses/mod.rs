//! Losses: of numbers, and of the embeddings of texts.
//!
//! | what a model learns | loss | in sentence-transformers, PyTorch |
//! |---|---|---|
//! | the class, the next token | [`ops::CrossEntropy`](crate::ops::CrossEntropy) | `CrossEntropyLoss` |
//! | a number | [`mse`], [`l1`], [`huber`] | `MSELoss`, `L1Loss`, `HuberLoss` |
//! | which text answers which | [`MultipleNegativesRanking`] | `MultipleNegativesRankingLoss` |
//! | how alike two texts are | [`cosine_similarity`] | `CosineSimilarityLoss` |
//! | which of two pairs is more alike | [`CoSent`] | `CoSENTLoss` |
//! | which of two texts is closer to a third | [`Triplet`] | `TripletLoss` |
//!
//! The values are those of these classes. A loss is a scalar in f32, or f64 for f64; half types are
//! computed in f32. A vector of zeros has a cosine of 0 with all others, and no loss makes NaN of it.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use lora::losses::MultipleNegativesRanking;
//!
//! let questions = Var::new(&[[1f32, 0.], [0., 1.]], &Device::Cpu)?;   // (batch, width)
//! let answers = Tensor::new(&[[2f32, 0.1], [0.1, 3.]], &Device::Cpu)?;
//! let loss = MultipleNegativesRanking::new().loss(&questions, &answers, None)?;
//! assert!(loss.to_scalar::<f32>()? < 1e-6);  // each question is closest to its own answer
//! assert!(loss.backward()?.get(&questions).is_some());
//! # Ok::<(), candle_core::Error>(())
//! ```

mod pairs;
mod ranking;
mod regression;
mod triplet;
mod vectors;

pub use pairs::{CoSent, cosine_similarity};
pub use ranking::{MultipleNegativesRanking, Similarity};
pub use regression::{Reduction, huber, l1, mse};
pub use triplet::{Distance, Triplet};

use crate::ops::wide;
use candle_core::{Result, Tensor, bail};

/// The tensor in the dtype to compute a loss in.
fn float(what: &str, name: &str, xs: &Tensor) -> Result<Tensor> {
    if !xs.dtype().is_float() {
        bail!(
            "{what}: the {name} must be floating-point, they are {:?}",
            xs.dtype()
        );
    }
    xs.to_dtype(wide(xs.dtype()))
}

/// The embeddings (batch, width) to compute with, checked to have rows and as many columns as the
/// first, in its dtype.
fn embeddings<const N: usize>(what: &str, named: [(&str, &Tensor); N]) -> Result<[Tensor; N]> {
    let (first_name, first) = named[0];
    let mut found = Vec::new();
    for (name, xs) in named {
        match *xs.dims() {
            [rows, width] if rows > 0 && width > 0 => {}
            _ => bail!(
                "{what}: the {name} must be (batch, width), neither of them 0, they are {:?}",
                xs.dims()
            ),
        }
        if xs.dims()[1] != first.dims()[1] || xs.dtype() != first.dtype() {
            bail!(
                "{what}: the {name} are {:?} in {:?}, the {first_name} {:?} in {:?}: width and dtype must \
                 be the same",
                xs.dims(),
                xs.dtype(),
                first.dims(),
                first.dtype()
            );
        }
        found.push(float(what, name, xs)?);
    }
    match found.try_into() {
        Ok(found) => Ok(found),
        Err(_) => bail!("{what}: no embeddings"),
    }
}

/// As [`embeddings`], checked to have as many rows, too.
fn aligned<const N: usize>(what: &str, named: [(&str, &Tensor); N]) -> Result<[Tensor; N]> {
    let found = embeddings(what, named)?;
    let rows = found[0].dims()[0];
    for ((name, _), xs) in named.iter().zip(&found) {
        if xs.dims()[0] != rows {
            bail!(
                "{what}: there are {} {name}, for {rows} {}: each row needs its own",
                xs.dims()[0],
                named[0].0
            );
        }
    }
    Ok(found)
}

/// The labels (batch) of pairs, in the dtype of their scores.
fn labels(what: &str, labels: &Tensor, scores: &Tensor) -> Result<Tensor> {
    if labels.dims() != scores.dims() {
        bail!(
            "{what}: {} pairs need labels of {:?}, they are {:?}",
            scores.dims()[0],
            scores.dims(),
            labels.dims()
        );
    }
    let labels = labels.to_dtype(scores.dtype())?;
    match crate::ops::is_finite(&labels)? {
        true => Ok(labels),
        false => bail!("{what}: the labels must be finite"),
    }
}

/// Refuses a setting that is not above 0 and finite.
fn positive(what: &str, name: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    bail!("{what}: the {name} must be above 0, it is {value}")
}
