//! Adapters of experts: how older versions of PEFT laid them out.

use super::describe::{Description, Site};
use super::load::Files;
use super::{AdapterConfig, AdapterDir, keys};
use crate::adapter::Form;
use crate::{Part, Result};
use candle_core::Tensor;

/// Brings the adapters of experts to the present layout.
///
/// Up to 0.18, PEFT read every weight of three dimensions as (experts, in, out). Since 0.19.1 the
/// module says how its weight lies, mostly (experts, out, in). So A and B of an older file are the
/// other way round for such a weight. The shapes tell, unless the weight is square.
pub(super) fn fit(
    files: &mut Files,
    model: &Description,
    problems: &mut Vec<String>,
) -> Result<()> {
    if !model.sites.iter().any(Site::is_bare) {
        return Ok(());
    }
    let planned = model.planned(&files.config)?;
    for (path, place, ..) in model.places(&planned) {
        let Some(site) = model.site(path) else {
            continue;
        };
        let Some(Form::Experts { count, transposed }) = site.form else {
            continue;
        };
        let dims = site.own.first().map(|own| own.param.tensor.dims().to_vec());
        let Some(&[_, x, y]) = dims.as_deref() else {
            continue;
        };
        let (input, out) = if transposed { (x, y) } else { (y, x) };
        let [a, b] = [Part::A, Part::B].map(|part| keys::part(&place, part, false));
        let tensors = &mut files.weights.tensors;
        let (Some(of_a), Some(of_b)) = (tensors.info(&a), tensors.info(&b)) else {
            continue;
        };
        let (&[rows, of_input], &[of_out, columns]) = (&of_a.shape[..], &of_b.shape[..]) else {
            continue;
        };
        let (fits, fits_swapped) = (
            (of_input, of_out) == (input, out),
            (of_input, of_out) == (out, input),
        );
        let swapped = match (fits, fits_swapped) {
            (true, true) => match are_old(&files.dir, &files.file) {
                // The older layout is that of a transposed weight.
                Some(old) => old && !transposed,
                None => {
                    problems.push(question(path));
                    continue;
                }
            },
            (_, swapped) => swapped,
        };
        if !swapped || rows != columns || rows % count.max(1) != 0 {
            continue;
        }
        let tensors = &mut files.weights.tensors;
        if let (Some(of_a), Some(of_b)) = (tensors.get(&a)?, tensors.get(&b)?) {
            tensors.insert(&a, a_of_b(&of_b, count)?)?;
            tensors.insert(&b, b_of_a(&of_a, count)?)?;
        }
    }
    Ok(())
}

/// Whether A and B are in the layout of PEFT up to 0.18, as far as the caller or the version tell.
pub(super) fn are_old(dir: &AdapterDir, file: &AdapterConfig) -> Option<bool> {
    dir.old_experts.or(match file.experts_layout() {
        Layout::InOut => Some(true),
        Layout::AsStored => Some(false),
        Layout::Unknown => None,
    })
}

pub(super) fn question(path: &str) -> String {
    format!(
        "the experts of `{path}` are square, and `peft_version` does not tell which of A and B is \
         which: was the adapter written by PEFT up to 0.18? Say so with \
         AdapterDir::new(dir).old_experts(true) or old_experts(false)"
    )
}

/// How a version of PEFT reads the weights of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// As (experts, in, out), whatever the module says: up to 0.18.
    InOut,
    /// As the module says: since 0.19.1.
    AsStored,
    /// The file does not name its version, or the one of 0.19.0, which did neither.
    Unknown,
}

impl Layout {
    /// The layout of a version such as `0.18.1.dev0`.
    pub fn of_version(version: &str) -> Self {
        let number = |part: &str| -> Option<u64> {
            let digits = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            part[..digits].parse().ok()
        };
        let mut parts = version.split('.').map(number);
        let [major, minor, patch] = [parts.next(), parts.next(), parts.next()].map(Option::flatten);
        match (major, minor, patch) {
            (Some(0), Some(..=18), _) => Self::InOut,
            (Some(0), Some(19), Some(0) | None) | (None, ..) | (_, None, _) => Self::Unknown,
            _ => Self::AsStored,
        }
    }
}

/// A of the present layout: (experts · rank, in) of (in, rank · experts).
pub(super) fn a_of_b(b: &Tensor, experts: usize) -> candle_core::Result<Tensor> {
    let (input, columns) = b.dims2()?;
    let by_expert = b
        .reshape((input, columns / experts, experts))?
        .permute((2, 1, 0))?;
    by_expert.contiguous()?.reshape((columns, input))
}

/// B of the present layout: (out, rank · experts) of (experts · rank, out).
pub(super) fn b_of_a(a: &Tensor, experts: usize) -> candle_core::Result<Tensor> {
    let (rows, out) = a.dims2()?;
    let by_expert = a
        .reshape((experts, rows / experts, out))?
        .permute((2, 1, 0))?;
    by_expert.contiguous()?.reshape((out, rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn versions_tell_the_layout() {
        for (version, layout) in [
            ("0.17.1", Layout::InOut),
            ("0.18.0", Layout::InOut),
            ("0.18.1.dev0", Layout::InOut),
            ("0.18.0rc1@0123abc", Layout::InOut),
            ("0.19.0", Layout::Unknown),
            ("0.19.1", Layout::AsStored),
            ("0.21.2", Layout::AsStored),
            ("1.0", Layout::AsStored),
            ("next", Layout::Unknown),
            ("", Layout::Unknown),
        ] {
            assert_eq!(Layout::of_version(version), layout, "{version}");
        }
    }

    /// The update of the older layout, read as (experts, in, out), is that of the present one.
    #[test]
    fn the_update_stays_the_same() {
        let random = |shape: (usize, usize)| Tensor::randn(0f64, 1., shape, &Device::Cpu).unwrap();
        let (experts, rank, out, input) = (3, 2, 5, 4);
        // The older layout's A takes what is now the output.
        let (a, b) = (
            random((experts * rank, out)),
            random((input, rank * experts)),
        );
        let form = |transposed| Form::Experts {
            count: experts,
            transposed,
        };
        let before = form(true).product(&a, &b).unwrap();
        let (a, b) = (a_of_b(&b, experts).unwrap(), b_of_a(&a, experts).unwrap());
        let after = form(false).product(&a, &b).unwrap();
        assert_eq!(before.dims(), [experts, out, input]);
        let difference = (before - after).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f64>().unwrap() < 1e-12);
    }
}
