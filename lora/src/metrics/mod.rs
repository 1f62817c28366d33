//! What tells how good a model is: of classes, numbers, searches and next tokens.
//!
//! | of | functions |
//! |---|---|
//! | classes | [`accuracy`], [`F1`] |
//! | numbers | [`pearson`], [`spearman`] |
//! | searches | [`Retrieval`]: recall, mean reciprocal rank, NDCG |
//! | next tokens | [`Perplexity`] |

mod classes;
mod correlation;
mod perplexity;
mod retrieval;

pub use classes::{F1, accuracy};
pub use correlation::{pearson, spearman};
pub use perplexity::Perplexity;
pub use retrieval::Retrieval;

use candle_core::{Result, bail};

/// Refuses two lists of different lengths, or without a value.
fn alike<A, B>(what: &str, a: &[A], b: &[B]) -> Result<()> {
    if a.len() != b.len() || a.is_empty() {
        bail!(
            "{what}: two lists of the same length are needed, with at least one value; there are {} and {} \
             values",
            a.len(),
            b.len()
        );
    }
    Ok(())
}
