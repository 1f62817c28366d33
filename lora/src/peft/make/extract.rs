//! [`extract`]: an adapter from two checkpoints.

use super::low_rank::LowRank;
use super::resize::share;
use super::rest::{Rest, module_of};
use crate::config::Kind;
use crate::config::selection::Selection;
use crate::error::shorten;
use crate::file::Checkpoint;
use crate::peft::layers::{self, Layer};
use crate::peft::values::Values;
use crate::peft::{RankChoice, keys};
use crate::{Error, LoraConfig, Result, Targets, gguf, init, linalg};
use candle_core::{DType, Tensor};
use faer::Mat;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// Models of transformers whose linear layers hold their weights as (in, out).
const TRANSPOSED: [&str; 3] = ["gpt2", "openai-gpt", "imagegpt"];

/// Which adapter to extract.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExtractOptions {
    /// The rank of each layer; 16 without a choice.
    pub rank: RankChoice,
    /// The layers that get an update of low rank, as [`LoraConfig::target_modules`] names them. `None`
    /// for every linear layer and convolution that differs.
    pub target_modules: Option<Targets>,
    /// The dtype of A and B: F32, F16, BF16 or F64.
    pub dtype: DType,
    /// Whether the adapter also holds in full what differs beside: biases, norms, embeddings, as
    /// `modules_to_save` and `bias`. Else these are only [reported](ExtractReport::left).
    pub rest: bool,
    /// Whether linear layers hold their weights as (in, out). `None` for what the model's type in
    /// `config.json` says.
    pub fan_in_fan_out: Option<bool>,
}

impl Default for ExtractOptions {
    fn default() -> Self {
        Self {
            rank: RankChoice::Rank(16),
            target_modules: None,
            dtype: DType::F32,
            rest: true,
            fan_in_fan_out: None,
        }
    }
}

impl ExtractOptions {
    /// Rank 16 in F32 for all that differs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`rank`](Self::rank).
    pub fn rank(mut self, rank: RankChoice) -> Self {
        self.rank = rank;
        self
    }

    /// Sets [`target_modules`](Self::target_modules).
    pub fn target_modules(mut self, targets: impl Into<Targets>) -> Self {
        self.target_modules = Some(targets.into());
        self
    }

    /// Sets [`dtype`](Self::dtype).
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Sets [`rest`](Self::rest).
    pub fn rest(mut self, keep: bool) -> Self {
        self.rest = keep;
        self
    }

    /// Sets [`fan_in_fan_out`](Self::fan_in_fan_out).
    pub fn fan_in_fan_out(mut self, transposed: bool) -> Self {
        self.fan_in_fan_out = Some(transposed);
        self
    }
}

/// What [`extract`] found.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExtractReport {
    /// The layers with an update of low rank.
    pub layers: Vec<ExtractedLayer>,
    /// Modules that the adapter holds in full.
    pub modules: Vec<String>,
    /// Layers whose bias differs, so that the adapter holds the biases of all its layers.
    pub biases: Vec<String>,
    /// Tensors that differ and have no part in the adapter.
    pub left: Vec<LeftTensor>,
    /// Number of tensors that are the same in both.
    pub unchanged: usize,
    /// The Frobenius norm of all that the adapter lacks over that of all that differs.
    pub error: f64,
}

/// A layer with an update of low rank.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExtractedLayer {
    /// The layer's path.
    pub name: String,
    /// The weight's shape.
    pub shape: Vec<usize>,
    /// The rank.
    pub rank: usize,
    /// The Frobenius norm of the difference.
    pub norm: f64,
    /// ‖difference − B·A‖ / ‖difference‖, measured on the values as they were written.
    pub error: f64,
}

/// A tensor that differs and has no part in the adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LeftTensor {
    /// The tensor's name.
    pub name: String,
    /// The Frobenius norm of the difference; `None` for a tensor that is new or of another shape.
    pub norm: Option<f64>,
}

/// Makes an adapter of PEFT's from a base checkpoint and one that was tuned from it in full: by layer
/// the best approximation of the difference, from its singular values and vectors.
///
/// Both may be a safetensors file, an index, a GGUF file, or a directory with one of these. A GGUF file is
/// dequantised, and has transformers' names and order of rows: what its blocks rounded is part of the
/// difference. Memory holds one tensor of both in f64, and the adapter. The scaling is 1, the weight of the
/// singular values is shared between B and A. Embeddings get an update of low rank only if
/// [`target_modules`](ExtractOptions::target_modules) names them. A large matrix is decomposed from a
/// random start with a fixed seed; the errors that the report tells are measured.
///
/// ```no_run
/// use lora::peft::{ExtractOptions, RankChoice, extract};
///
/// let options = ExtractOptions::new().rank(RankChoice::Energy(0.9));
/// let report = extract("SmolLM2-135M", "SmolLM2-135M-Instruct", "adapter", &options)?;
/// println!("{:.1} % remain", 100.0 * report.error);
/// # Ok::<(), lora::Error>(())
/// ```
///
/// # Errors
/// If the two do not differ, or in nothing of low rank; if a tensor of the base is missing in the tuned
/// checkpoint; if a target matches nothing; if values are not finite, or a checkpoint in safetensors is
/// quantised; if a file cannot be read or written. All problems are listed, and what was at `out` stays.
pub fn extract(
    base: impl AsRef<Path>,
    tuned: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &ExtractOptions,
) -> Result<ExtractReport> {
    options.rank.check()?;
    if ![DType::F64, DType::F32, DType::F16, DType::BF16].contains(&options.dtype) {
        let problem = format!(
            "`dtype` is {:?}: it must be F32, F16, BF16 or F64",
            options.dtype
        );
        return Err(Error::Config(vec![problem]));
    }
    let (base, tuned) = (gguf::open(base.as_ref())?, gguf::open(tuned.as_ref())?);
    for checkpoint in [&base, &tuned] {
        if let Some(scheme) = checkpoint.quantised() {
            let problem = format!("is quantised by {scheme}: name the checkpoint before that");
            return Err(Error::file(&checkpoint.path, problem));
        }
    }
    let mut lora = LoraConfig::new(1);
    lora.target_modules = options.target_modules.clone();
    let transposed = match options.fan_in_fan_out {
        Some(transposed) => transposed,
        None => is_transposed(&base)? || is_transposed(&tuned)?,
    };
    let mut work = Work {
        base: &base,
        tuned: &tuned,
        options,
        transposed,
        selection: Selection::new(&lora)?,
        layers: Vec::new(),
        report: Vec::new(),
        rest: Vec::new(),
        unchanged: 0,
        problems: Vec::new(),
        lost: 0.0,
        energy: 0.0,
    };
    work.compare()?;
    work.finish(out.as_ref())
}

/// Whether the model is one whose linear layers hold their weights as (in, out).
fn is_transposed(checkpoint: &Checkpoint) -> Result<bool> {
    let config = checkpoint.model_config()?;
    let kind = config
        .as_ref()
        .and_then(|config| config.get("model_type")?.as_str());
    Ok(kind.is_some_and(|kind| TRANSPOSED.contains(&kind)))
}

/// An extraction on its way.
struct Work<'a> {
    base: &'a Checkpoint,
    tuned: &'a Checkpoint,
    options: &'a ExtractOptions,
    transposed: bool,
    selection: Selection<'a>,
    layers: Vec<Layer>,
    report: Vec<ExtractedLayer>,
    /// Tensors that differ and get no update of low rank, with the energy of the difference.
    rest: Vec<(String, Option<f64>)>,
    unchanged: usize,
    problems: Vec<String>,
    lost: f64,
    energy: f64,
}

impl Work<'_> {
    fn compare(&mut self) -> Result<()> {
        let is_counter = |name: &&str| keys::is_counter(name);
        let missing = self.base.names().filter(|name| !self.tuned.contains(name));
        let missing: Vec<&str> = missing.filter(|name| !is_counter(name)).collect();
        if missing.len() == self.base.names().count() {
            let (one, two) = (self.base.names().next(), self.tuned.names().next());
            let problem = format!(
                "has no name in common with {}: `{}` here, `{}` there",
                self.base.path.display(),
                shorten(two.unwrap_or_default()),
                shorten(one.unwrap_or_default())
            );
            return Err(Error::file(&self.tuned.path, problem));
        }
        let missing = missing
            .iter()
            .map(|name| format!("lacks `{}` of the base", shorten(name)));
        self.problems.extend(missing);
        let tuned = self.tuned;
        for name in tuned.names().filter(|name| !is_counter(name)) {
            let path = name.strip_suffix(".weight").filter(|path| !path.is_empty());
            // Asked for every weight, so that a target that matches none is told.
            let is_target = match path {
                Some(path) => self.is_target(path, self.tuned.shape(name).unwrap_or_default())?,
                None => false,
            };
            if self.base.shape(name) != self.tuned.shape(name) {
                self.rest.push((name.into(), None));
                continue;
            }
            let (before, after) = (self.base.tensor(name)?, self.tuned.tensor(name)?);
            let difference = Values::of_difference(&before, &after)?;
            if difference.wrong > 0 {
                let short = shorten(name);
                self.problems.push(format!(
                    "`{short}` holds values that are not finite in one of the two"
                ));
            } else if difference.energy == 0.0 {
                self.unchanged += 1;
            } else if let Some(path) = path.filter(|_| is_target && after.dtype().is_float()) {
                self.layer(path, &before, &after)?;
            } else {
                self.energy += difference.energy;
                self.rest.push((name.into(), Some(difference.energy)));
            }
        }
        Ok(())
    }

    /// Whether the weight of this layer, of this shape, gets an update of low rank.
    fn is_target(&mut self, path: &str, shape: &[usize]) -> Result<bool> {
        // A convolution whose outputs see one channel each has as many groups, which PEFT's update
        // cannot keep apart.
        let fits = match shape {
            [_, _] => true,
            [_, channels, kernel @ ..] => *channels > 1 && !kernel.is_empty(),
            _ => false,
        } && !shape.contains(&0);
        let chosen = match self.options.target_modules {
            Some(_) => self
                .selection
                .choose(path, Some(Kind::Linear), None)?
                .target
                .is_some(),
            None => !keys::is_embedding_path(path),
        };
        Ok(fits && chosen)
    }

    fn layer(&mut self, path: &str, before: &Tensor, after: &Tensor) -> Result<()> {
        let dims = after.dims().to_vec();
        let matrix = |tensor: &Tensor| linalg::matrix(&tensor.flatten_from(1)?);
        let mut difference: Mat<f64> = matrix(after)?;
        difference -= matrix(before)?;
        let of_lookup = keys::is_embedding_path(path);
        let turned = of_lookup || (self.transposed && dims.len() == 2 && !keys::is_head(path));
        let difference = match turned {
            true => difference.transpose(),
            false => difference.as_ref(),
        };
        let (rank, dtype) = (self.options.rank, self.options.dtype);
        let mut rng = init::rng(Some(0), path);
        let found = LowRank::of(difference, rank, dtype, &mut rng);
        let found = found.map_err(|error| error.at(path))?;
        let rank = found.a.dim(0)?;
        let (mut a, mut b) = (found.a, found.b);
        if let [out, inputs @ ..] = &dims[..]
            && inputs.len() > 1
        {
            let ones = vec![1; inputs.len() - 1];
            a = a.reshape([&[rank], inputs].concat())?;
            b = b.reshape([&[*out, rank], &ones[..]].concat())?;
        }
        self.lost += found.lost;
        self.energy += found.energy;
        self.report.push(ExtractedLayer {
            name: path.into(),
            shape: dims,
            rank,
            norm: found.energy.sqrt(),
            error: share(found.lost.sqrt(), found.energy.sqrt()),
        });
        self.layers.push(Layer {
            path: path.into(),
            of_lookup,
            a,
            b,
            // A scaling of 1.
            alpha: rank as f64,
            magnitude: None,
        });
        Ok(())
    }

    /// Writes the adapter.
    fn finish(mut self, out: &Path) -> Result<ExtractReport> {
        let targets: BTreeSet<&str> = self
            .layers
            .iter()
            .map(|layer| layer.path.as_str())
            .collect();
        let is_target = |module: &str| targets.contains(module);
        let (mut rest, mut left) = (Rest::default(), Vec::new());
        for (name, energy) in &self.rest {
            if !self.options.rest || !rest.add(name, is_target) {
                self.lost += energy.unwrap_or(0.0);
                left.push(LeftTensor {
                    name: name.clone(),
                    norm: energy.map(f64::sqrt),
                });
            }
        }
        self.problems.extend(rest.complete(self.tuned, is_target));
        self.problems.extend(self.selection.unused());
        if self.layers.is_empty() && self.problems.is_empty() {
            self.problems.push(match self.rest.first() {
                None => format!("does not differ from {}", self.base.path.display()),
                Some((name, _)) => format!(
                    "differs from {} in {} tensors, such as `{}`, but in no weight of a target: an \
                     adapter needs one",
                    self.base.path.display(),
                    self.rest.len(),
                    shorten(name)
                ),
            });
        }
        if !self.problems.is_empty() {
            return Err(Error::File {
                path: self.tuned.path.clone(),
                problems: self.problems,
            });
        }
        let mut config = layers::config(&self.layers);
        config.base_model_name_or_path = Some(self.base.path.display().to_string());
        config.fan_in_fan_out = self.transposed;
        config.bias = rest.bias();
        let modules: Vec<String> = rest.modules.iter().cloned().collect();
        config.modules_to_save = (!modules.is_empty()).then(|| modules.clone());
        config.target_modules = Some(names(&targets, self.tuned));
        let others = rest.tensors(self.tuned, targets.iter().copied())?;
        layers::write_with(out, &self.layers, others, config)?;
        Ok(ExtractReport {
            layers: self.report,
            modules,
            biases: rest.biased.into_iter().collect(),
            left,
            unchanged: self.unchanged,
            error: share(self.lost.sqrt(), self.energy.sqrt()),
        })
    }
}

/// The targets by their paths, or a regular expression where a path would mean other modules, too.
fn names(targets: &BTreeSet<&str>, tuned: &Checkpoint) -> Targets {
    let modules: BTreeSet<&str> = tuned.names().map(module_of).collect();
    let mut others = modules.iter().filter(|module| !targets.contains(*module));
    let is_meant = |module: &&&str| {
        let mut ends = crate::config::matching::ends(module);
        ends.any(|end| targets.contains(end))
    };
    let paths = targets.iter();
    match others.find(is_meant) {
        None => Targets::Names(paths.map(|path| path.to_string()).collect()),
        Some(_) => {
            let paths = paths.map(|path| fancy_regex::escape(path).into_owned());
            Targets::Regex(format!("^({})$", paths.collect::<Vec<_>>().join("|")))
        }
    }
}
