//! [`resize`]: an adapter of another rank.

use crate::error::shorten;
use crate::peft::layers::{self, Layer, Opened};
use crate::peft::product::Product;
use crate::peft::{AdapterDir, RankChoice, keys};
use crate::{Error, Result};
use serde::Serialize;
use std::path::Path;

/// What [`resize`] did.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ResizeReport {
    /// The layers in the order of the file.
    pub layers: Vec<ResizedLayer>,
    /// The Frobenius norm of all that is lost over that of all updates.
    pub error: f64,
}

/// A layer of another rank.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ResizedLayer {
    /// The layer's path.
    pub name: String,
    /// The rank before.
    pub before: usize,
    /// The rank now.
    pub after: usize,
    /// ‖lost‖ / ‖update‖, measured on the values as they were written; 0 for an update of zero.
    pub error: f64,
}

/// Writes an adapter of PEFT's with another rank: the first singular values and vectors of each
/// update, found from the QR decompositions of B and Aᵀ, without the base model.
///
/// Every layer keeps its scaling and dtype. A layer that needs another rank than most gets an entry of
/// `rank_pattern`. Magnitudes, biases and modules trained in full are copied. No layer gets more rank
/// than it has.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::Linear;
/// use lora::peft::{RankChoice, resize};
/// use lora::{Init, LoraConfig, LoraModel, LoraModule};
///
/// #[derive(Clone, Debug, LoraModel)]
/// struct Net { fc: Linear }
///
/// let net = Net { fc: Linear::new(Tensor::zeros((6, 5), DType::F32, &Device::Cpu)?, None) };
/// let config = LoraConfig::new(4).target_modules(["fc"]).init(Init::Random);
/// let dir = tempfile::tempdir()?;
/// net.to_lora(&config)?.save_adapter(dir.path().join("large"))?;
/// let report = resize(dir.path().join("large").as_path(), dir.path().join("small"), RankChoice::Rank(2))?;
/// assert_eq!((report.layers[0].before, report.layers[0].after), (4, 2));
/// assert!(report.error > 0.0 && report.error < 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// If the rank is 0 or the share not in (0, 1]; if matrices are missing, do not fit or are not finite;
/// if the adapter fits only a residual base, or a head shares it; if adapters of experts would need
/// several ranks; if a file cannot be read or written. What was at `out` then stays.
pub fn resize(
    adapter: impl Into<AdapterDir>,
    out: impl AsRef<Path>,
    choice: RankChoice,
) -> Result<ResizeReport> {
    choice.check()?;
    let dir = adapter.into();
    let opened = Opened::open(&dir)?;
    let failed = |problems| Error::File {
        path: dir.path().into(),
        problems,
    };
    let mut problems = opened.problems.clone();
    let unfit = [
        (
            "init_lora_weights",
            opened.file.init_lora_weights.changes_base(),
        ),
        ("ensure_weight_tying", opened.file.ensure_weight_tying),
    ];
    for (key, _) in unfit.iter().filter(|(_, on)| *on) {
        problems.push(format!(
            "`{key}` is set to a value that only this rank fits"
        ));
    }
    if !problems.is_empty() {
        return Err(failed(problems));
    }
    let (mut resized, mut report) = (Vec::new(), Vec::new());
    let (mut sizes, mut sums) = (Vec::new(), [0.0; 2]);
    for place in &opened.places {
        let layer = opened.layer(place)?;
        if let Some(problem) = layer.check()? {
            problems.push(problem);
            continue;
        }
        let scaling = place.settings.scaling;
        let product = |a, b| {
            let product = Product::of(a, b, scaling, place.experts);
            product.map_err(|error| error.at(&place.path))
        };
        let old = product(&layer.a, &layer.b)?;
        let (a, b) = old.cut(choice, &layer.a, &layer.b)?;
        let lost = old.minus(&product(&a, &b)?);
        let lost = lost.map(|lost| lost.norm()).transpose()?.unwrap_or(0.0);
        let norm = old.norm()?;
        sums = [sums[0] + lost * lost, sums[1] + norm * norm];
        let rank = a.dim(0)? / place.experts;
        let root = match place.settings.use_rslora {
            true => (rank as f64).sqrt(),
            false => rank as f64,
        };
        sizes.push((place.path.as_str(), rank, scaling * root));
        report.push(ResizedLayer {
            name: place.path.clone(),
            before: place.settings.rank,
            after: rank,
            error: share(lost, norm),
        });
        resized.push(Layer {
            a,
            b,
            alpha: scaling * rank as f64,
            ..layer
        });
    }
    problems.extend(one_size(&opened, &sizes));
    if !problems.is_empty() {
        return Err(failed(problems));
    }
    let mut config = opened.file.clone();
    layers::set_sizes(&mut config, &sizes);
    let others = opened.others.iter();
    let others = others.map(|(plain, key)| Ok((plain.clone(), opened.tensor(key)?)));
    let others = others.collect::<Result<Vec<_>>>()?;
    layers::write_with(out.as_ref(), &resized, others, config)?;
    Ok(ResizeReport {
        layers: report,
        error: share(sums[0].sqrt(), sums[1].sqrt()),
    })
}

/// A part's share, where zero of zero is none.
pub(super) fn share(part: f64, whole: f64) -> f64 {
    match part == 0.0 {
        true => 0.0,
        false => part / whole,
    }
}

/// The problem of layers that need ranks of their own where no pattern can name a layer: PEFT has the
/// settings of bare weights and of projections inside an attention layer by the module around them.
fn one_size(opened: &Opened, sizes: &[(&str, usize, f64)]) -> Option<String> {
    let is_inside = |path: &str| keys::without_wrappers(path) != path;
    let mut places = opened.places.iter();
    let inner = places.find(|place| place.experts > 1 || is_inside(&place.path))?;
    let same = sizes
        .windows(2)
        .all(|pair| (pair[0].1, pair[0].2) == (pair[1].1, pair[1].2));
    (!same).then(|| {
        format!(
            "`{}` is inside of a module, whose layers must have one rank and alpha: name a rank in \
             place of a share of energy",
            shorten(&inner.path)
        )
    })
}
