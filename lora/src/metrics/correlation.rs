//! How far two lists of numbers rise and fall together.

use super::alike;
use candle_core::{Result, bail};

/// Pearson's correlation, from −1 to 1: 1 where one list is a rising line of the other.
///
/// If all values of a list are alike it is NaN, as SciPy's.
///
/// # Errors
/// If the lists differ in length, or hold NaN or nothing.
///
/// ```
/// let r = lora::metrics::pearson(&[1., 2., 3.], &[10., 20., 30.])?;
/// assert!((r - 1.0).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn pearson(a: &[f64], b: &[f64]) -> Result<f64> {
    checked("Pearson's correlation", a, b)?;
    let centred = |of: &[f64]| -> Vec<f64> {
        let mean = of.iter().sum::<f64>() / of.len() as f64;
        of.iter().map(|value| value - mean).collect()
    };
    let constant = |of: &[f64]| of.iter().all(|value| *value == of[0]);
    if constant(a) || constant(b) {
        return Ok(f64::NAN);
    }
    let (a, b) = (centred(a), centred(b));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    Ok((dot(&a, &b) / (dot(&a, &a).sqrt() * dot(&b, &b).sqrt())).clamp(-1.0, 1.0))
}

/// Spearman's correlation: Pearson's of the ranks, so that only the order counts. Values that are
/// alike share the mean of their ranks.
///
/// # Errors
/// As [`pearson`].
///
/// ```
/// let r = lora::metrics::spearman(&[1., 2., 3.], &[1., 10., 1000.])?;
/// assert!((r - 1.0).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn spearman(a: &[f64], b: &[f64]) -> Result<f64> {
    checked("Spearman's correlation", a, b)?;
    pearson(&ranks(a), &ranks(b))
}

fn checked(what: &str, a: &[f64], b: &[f64]) -> Result<()> {
    alike(what, a, b)?;
    if a.iter().chain(b).any(|value| !value.is_finite()) {
        bail!("{what}: the values must be finite");
    }
    Ok(())
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    // 0 and −0 are alike, though one sorts before the other.
    for alike in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let mean = before as f64 + (alike.len() + 1) as f64 / 2.0;
        alike.iter().for_each(|&index| ranks[index] = mean);
        before += alike.len();
    }
    ranks
}
