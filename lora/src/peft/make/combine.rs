//! [`combine_files`]: several adapters into one, without a model.

use super::resize::share;
use crate::manage::{Source, combine};
use crate::peft::AdapterDir;
use crate::peft::layers::{self, Layer, Opened};
use crate::peft::product::Product;
use crate::{Combination, CombineOptions, Error, Result, init};
use indexmap::IndexSet;
use serde::Serialize;
use std::path::Path;

/// What [`combine_files`] did.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CombineReport {
    /// The layers of the result.
    pub layers: Vec<CombinedLayer>,
    /// How far the result is from the weighted sum of the updates: the Frobenius norm of the difference
    /// over that of the sum. `None` for rules that mean no sum.
    pub error: Option<f64>,
}

/// A layer of the result.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CombinedLayer {
    /// The layer's path.
    pub name: String,
    /// How many of the adapters have the layer.
    pub adapters: usize,
    /// The rank.
    pub rank: usize,
    /// As [`CombineReport::error`], of this layer.
    pub error: Option<f64>,
}

/// Combines adapters of PEFT's into one, without the base model. The result is that of
/// [`add_weighted_adapter`](crate::LoraModule::add_weighted_adapter) in a model that holds them all.
///
/// A layer that only some of the adapters have is combined from those. The result's scaling is 1. Its
/// other settings are the first adapter's. Memory holds a layer of each adapter, and the result.
///
/// What an adapter with DoRA changes depends on the base's weights, and is no product of A and B: no rule
/// combines such adapters from their files. A single one, with a weight of 1, keeps its magnitudes. The
/// other way is to [merge](crate::peft::merge_checkpoint) each into the base, to
/// [extract](crate::peft::extract) a plain adapter from base and result, and to combine those.
///
/// ```no_run
/// use lora::peft::combine_files;
/// use lora::{CombineOptions, Combination};
///
/// let adapters = [("code", 0.7), ("chat", 0.3)];
/// let report = combine_files(adapters, "both", Combination::Cat, &CombineOptions::default())?;
/// assert!(report.error.unwrap() < 1e-6); // exactly the sum
/// # Ok::<(), lora::Error>(())
/// ```
///
/// # Errors
/// If there is no adapter, or a weight is not finite; all that `add_weighted_adapter` refuses of ranks,
/// shapes and options; modules trained in full, biases, trained rows, adapters of experts, tied heads, a
/// residual base; DoRA, unless there is one adapter with a weight of 1. If a file cannot be read or
/// written. What was at `out` then stays.
pub fn combine_files<D: Into<AdapterDir>>(
    adapters: impl IntoIterator<Item = (D, f64)>,
    out: impl AsRef<Path>,
    combination: Combination,
    options: &CombineOptions,
) -> Result<CombineReport> {
    let adapters = adapters.into_iter();
    let adapters: Vec<(AdapterDir, f64)> = adapters.map(|(dir, w)| (dir.into(), w)).collect();
    let is_copy = matches!(adapters.as_slice(), [(_, 1.0)]);
    let mut opened = Vec::new();
    for (dir, weight) in &adapters {
        opened.push((open(dir, *weight, is_copy)?, *weight));
    }
    let Some((first, _)) = opened.first() else {
        return Err(Error::Adapter(vec![
            "name at least one adapter to combine".into(),
        ]));
    };
    let mut file = first.file.clone();
    let (combination, options) = combination.for_adapters(
        opened.len(),
        options,
        opened
            .iter()
            .flat_map(|(opened, _)| opened.places.iter().map(|place| place.settings.rank))
            .max()
            .unwrap_or(0),
    );
    let paths = opened.iter().flat_map(|(opened, _)| &opened.places);
    let paths: IndexSet<String> = paths.map(|place| place.path.clone()).collect();
    let (mut made, mut report, mut sums) = (Vec::new(), Vec::new(), Some([0.0; 2]));
    for path in paths {
        let layer = Combining::read(&opened, path)?.combine(combination, &options)?;
        sums = sums
            .zip(layer.sums)
            .map(|(all, own)| [all[0] + own[0], all[1] + own[1]]);
        report.push(CombinedLayer {
            name: layer.layer.path.clone(),
            adapters: layer.adapters,
            rank: layer.layer.rank(),
            error: layer.sums.map(error),
        });
        made.push(layer.layer);
    }
    let sizes = layers::config(&made);
    file.target_modules = sizes.target_modules;
    file.exclude_modules = None;
    (file.layers_to_transform, file.layers_pattern) = (None, None);
    (file.r, file.rank_pattern) = (sizes.r, sizes.rank_pattern);
    (file.lora_alpha, file.alpha_pattern) = (sizes.lora_alpha, sizes.alpha_pattern);
    file.use_rslora = false;
    file.init_lora_weights = sizes.init_lora_weights;
    layers::write_with(out.as_ref(), &made, Vec::new(), file)?;
    Ok(CombineReport {
        layers: report,
        error: sums.map(error),
    })
}

fn error([lost, whole]: [f64; 2]) -> f64 {
    share(lost.sqrt(), whole.sqrt())
}

/// Opens an adapter, if it can be combined. A copy of it may have magnitudes.
fn open(dir: &AdapterDir, weight: f64, is_copy: bool) -> Result<Opened> {
    let opened = Opened::open(dir)?;
    let mut problems = layers::unsupported(&opened.file);
    if opened.file.use_dora && !is_copy {
        problems.push(
            "`use_dora` is true: what the adapter changes depends on the base's weights, and is no \
             sum of low rank. Make a plain adapter of it first: merge it into the base \
             (peft::merge_checkpoint), and extract one from the base and the result (peft::extract)"
                .into(),
        );
    }
    problems.extend(opened.problems.iter().cloned());
    let others = opened.others.iter();
    problems.extend(others.map(|(plain, _)| format!("`{plain}` is no matrix of a layer")));
    if !weight.is_finite() {
        problems.push(format!("the weight is {weight}: it must be finite"));
    }
    match problems.is_empty() {
        true => Ok(opened),
        false => Err(Error::File {
            path: dir.path().into(),
            problems,
        }),
    }
}

/// The adapters of a layer, each with its weight.
struct Combining {
    path: String,
    layers: Vec<(Layer, f64)>,
}

/// A layer that was combined.
struct Made {
    layer: Layer,
    adapters: usize,
    /// The squares of the norms of the difference from the weighted sum, and of the sum.
    sums: Option<[f64; 2]>,
}

impl Combining {
    fn read(opened: &[(Opened, f64)], path: String) -> Result<Self> {
        let mut layers = Vec::new();
        for (opened, weight) in opened {
            if let Some(place) = opened.places.iter().find(|place| place.path == path) {
                let layer = opened.layer(place)?;
                if let Some(problem) = layer.check()? {
                    return Err(Error::layer(&path, problem));
                }
                layers.push((layer, *weight));
            }
        }
        Ok(Self { path, layers })
    }

    fn combine(self, combination: Combination, options: &CombineOptions) -> Result<Made> {
        let Self { path, layers } = self;
        let sources = layers.iter().map(|(layer, weight)| Source {
            a: &layer.a,
            b: &layer.b,
            weight: *weight,
            scaling: layer.scaling(),
        });
        let sources: Vec<Source<'_>> = sources.collect();
        let Some((first, _)) = layers.first() else {
            return Err(Error::layer(&path, "no adapter has the layer"));
        };
        // B of a grouped convolution is narrower than the rank.
        let groups = first.a.dim(0)? / first.b.dim(1)?.max(1);
        let mut rng = init::rng(options.seed, &path);
        let combined = combine(&sources, groups, combination, options, &mut rng);
        let combined = combined.map_err(|error| error.at(&path))?;
        let layer = Layer {
            path,
            of_lookup: first.of_lookup,
            a: combined.a,
            b: combined.b,
            alpha: combined.rank as f64,
            magnitude: first.magnitude.clone(),
        };
        Ok(Made {
            adapters: layers.len(),
            sums: match combination {
                Combination::Linear | Combination::Cat | Combination::Svd => {
                    Some(compare(&layers, &layer)?)
                }
                _ => None,
            },
            layer,
        })
    }
}

/// The squares of the norms of the difference from the weighted sum, and of the sum.
fn compare(layers: &[(Layer, f64)], made: &Layer) -> Result<[f64; 2]> {
    let mut sum: Option<Product> = None;
    for (layer, weight) in layers {
        let negative = layer.product()?.times(-weight);
        sum = match sum {
            None => Some(negative.times(-1.0)),
            Some(sum) => sum.minus(&negative),
        };
    }
    let Some(sum) = sum else {
        return Ok([0.0; 2]);
    };
    let lost = sum.minus(&made.product()?);
    let lost = lost.map(|lost| lost.norm()).transpose()?.unwrap_or(0.0);
    Ok([lost.powi(2), sum.norm()?.powi(2)])
}
