//! Shows data to initial values that need data: the inputs of a model's layers, or the gradients of
//! their weights.

use crate::init::adapter_dtype;
use crate::init::pca::IncrementalPca;
use crate::linalg;
use crate::{Error, Init, LoraConfig, Result, Targets};
use candle_core::{DType, Device, Tensor};
use faer::Mat;
use indexmap::IndexMap;

/// Collects the data that an [`Init`] needs: for EVA and CorDA the inputs of layers, for LoRA-GA
/// the gradients of the layers' weights.
///
/// First the caller adds every layer. Then the caller shows the layers' inputs or gradients, batch
/// by batch. [`finish`](Self::finish) makes the result.
#[derive(Clone, Debug)]
pub struct Calibration {
    config: LoraConfig,
    layers: IndexMap<String, Observed>,
    /// Some layer's inputs were observed.
    has_seen: bool,
}

#[derive(Clone, Debug)]
struct Observed {
    out: usize,
    inputs: usize,
    rank: usize,
    alpha: f64,
    seen: Seen,
    /// The layer's components have converged: the layer skips further inputs.
    done: bool,
}

/// What was collected for a layer so far.
#[derive(Clone, Debug)]
enum Seen {
    Components(Box<IncrementalPca>),
    Covariance(Mean),
    Gradient(Mean),
}

#[derive(Clone, Debug, Default)]
struct Mean {
    sum: Option<Tensor>,
    count: usize,
}

/// What [`calibrate`](crate::LoraModel::calibrate) found in the data: for EVA and CorDA about
/// the inputs of layers, for LoRA-GA about the gradients of the layers' weights.
#[derive(Clone, Debug)]
pub struct Calibrated {
    layers: IndexMap<String, Found>,
}

#[derive(Clone, Debug)]
enum Found {
    Components(Components),
    Covariance(Tensor),
    Gradient(Tensor),
}

/// The principal components of a layer's inputs.
#[derive(Clone, Debug)]
pub(crate) struct Components {
    /// One row for each component: (rank, in).
    pub(crate) vectors: Mat<f64>,
    /// The rank that the layer gets; 0 for none.
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
}

impl Calibration {
    /// A calibration for the initial values of this configuration.
    ///
    /// # Errors
    /// If the initial values need no data, or the configuration is invalid.
    pub fn new(config: &LoraConfig) -> Result<Self> {
        let init = config.init;
        if !(init.needs_inputs() || init.needs_gradients()) {
            let problem = format!("the initial value `{init}` needs no calibration");
            return Err(Error::Config(vec![problem]));
        }
        config.validate()?;
        Ok(Self {
            config: config.clone(),
            layers: IndexMap::new(),
            has_seen: false,
        })
    }

    /// True once a layer's inputs were observed.
    pub fn has_seen(&self) -> bool {
        self.has_seen
    }

    /// Adds a linear layer: the shape (out, in) of its weight, and the rank and alpha that its
    /// adapter will have.
    ///
    /// # Errors
    /// If the layer was added before, or `out`, `in` or the rank is 0.
    pub fn add_layer(
        &mut self,
        path: &str,
        (out, inputs): (usize, usize),
        rank: usize,
        alpha: f64,
    ) -> Result<()> {
        if out == 0 || inputs == 0 || rank == 0 {
            let message =
                format!("a weight ({out}, {inputs}) cannot be calibrated for rank {rank}");
            return Err(Error::layer(path, message));
        }
        let seen = match self.config.init {
            Init::Eva => {
                let most = (rank as f64 * self.config.eva_config.rho).round();
                let wanted = (most as usize).min(inputs);
                Seen::Components(Box::new(IncrementalPca::new(wanted, inputs)))
            }
            Init::LoraGa => Seen::Gradient(Mean::default()),
            _ => Seen::Covariance(Mean::default()),
        };
        let layer = Observed {
            out,
            inputs,
            rank,
            alpha,
            seen,
            done: false,
        };
        match self.layers.insert(path.into(), layer) {
            None => Ok(()),
            Some(_) => Err(Error::layer(path, "is calibrated already")),
        }
    }

    /// Takes inputs of a layer, (.., in), into account.
    ///
    /// # Errors
    /// If the layer was not added, the inputs are not finite or do not fit the layer's weight, or
    /// the initial values need gradients.
    pub fn observe_inputs(&mut self, path: &str, inputs: &Tensor) -> Result<()> {
        let (init, tau) = (self.config.init, self.config.eva_config.tau);
        self.has_seen = true;
        let layer = self.layer(path)?;
        let width = inputs.dims().last().copied().unwrap_or(0);
        if width != layer.inputs {
            let message = format!("inputs are {width} wide, the weight {}", layer.inputs);
            return Err(Error::layer(path, message));
        }
        let rows = inputs.elem_count() / width;
        if layer.done || rows == 0 {
            return Ok(());
        }
        let inputs = inputs.detach().reshape((rows, width))?;
        let result = match &mut layer.seen {
            Seen::Components(pca) => {
                let values = linalg::values(&inputs)?;
                check_finite("inputs", &values).and_then(|()| pca.fit(values, tau))
            }
            Seen::Covariance(mean) => covariance(&inputs).and_then(|c| mean.add(c)),
            Seen::Gradient(_) => {
                let message = format!("`{init}` looks at gradients, not at inputs");
                Err(Error::layer(path, message))
            }
        };
        result.map_err(|error| error.at(path))
    }

    /// Takes a gradient of a layer's weight, (out, in), into account.
    ///
    /// # Errors
    /// If the layer was not added, the gradient is not finite or has another shape than the weight,
    /// or the initial values need inputs.
    pub fn observe_gradient(&mut self, path: &str, gradient: &Tensor) -> Result<()> {
        let init = self.config.init;
        let layer = self.layer(path)?;
        if gradient.dims() != [layer.out, layer.inputs] {
            let message = format!(
                "the gradient is {:?}, the weight {:?}",
                gradient.dims(),
                (layer.out, layer.inputs)
            );
            return Err(Error::layer(path, message));
        }
        let Seen::Gradient(mean) = &mut layer.seen else {
            let message = format!("`{init}` looks at inputs, not at gradients");
            return Err(Error::layer(path, message));
        };
        let gradient = gradient.detach();
        let gradient = gradient.to_dtype(adapter_dtype(gradient.dtype()))?;
        check_sum("the gradient", &gradient)
            .and_then(|()| mean.add(gradient))
            .map_err(|error| error.at(path))
    }

    /// Ends a batch. Returns true once further batches would change nothing: with EVA, when every
    /// component that any layer gets has converged. A converged layer skips further inputs until a
    /// batch changes its rank. Other initial values use all batches, so the answer is always false.
    pub fn end_batch(&mut self) -> bool {
        let ranks = self.ranks();
        let mut all = !self.layers.is_empty();
        for (layer, rank) in self.layers.values_mut().zip(ranks) {
            layer.done = match &layer.seen {
                Seen::Components(pca) => pca.has_converged(rank),
                _ => false,
            };
            all &= layer.done;
        }
        all
    }

    /// Computes the result.
    ///
    /// # Errors
    /// If layers saw too little data: lists all of these layers.
    pub fn finish(self) -> Result<Calibrated> {
        let ranks = self.ranks();
        let whiten = self.config.eva_config.whiten;
        let mut problems = Vec::new();
        let mut layers = IndexMap::new();
        for ((path, layer), rank) in self.layers.into_iter().zip(ranks) {
            let unseen = || format!("`{path}` was never seen at work");
            let found = match layer.seen {
                Seen::Components(pca) => {
                    let (rows, needed) = pca.missing().unwrap_or_default();
                    let unseen = || format!("`{path}` saw {rows} inputs, but needs {needed}");
                    let vectors = pca.components(rank, whiten).ok_or_else(unseen);
                    let factor = match self.config.eva_config.adjust_scaling_factors {
                        true => rank as f64 / layer.rank as f64,
                        false => 1.0,
                    };
                    vectors.map(|vectors| {
                        Found::Components(Components {
                            vectors,
                            rank,
                            alpha: layer.alpha * factor,
                        })
                    })
                }
                Seen::Covariance(mean) => mean.take()?.map(Found::Covariance).ok_or_else(unseen),
                Seen::Gradient(mean) => mean.take()?.map(Found::Gradient).ok_or_else(unseen),
            };
            match found {
                Ok(found) => drop(layers.insert(path, found)),
                Err(problem) => problems.push(problem),
            }
        }
        match problems.is_empty() {
            true => Ok(Calibrated { layers }),
            false => Err(Error::Config(problems)),
        }
    }

    fn layer(&mut self, path: &str) -> Result<&mut Observed> {
        let layer = self.layers.get_mut(path);
        layer.ok_or_else(|| Error::layer(path, "was not added to the calibration"))
    }

    /// The rank of each layer. The sum of all ranks goes to the components that explain the largest
    /// shares of their layers' variance. Until every layer has components, no rank is limited.
    fn ranks(&self) -> Vec<usize> {
        let ratios = |layer: &Observed| match &layer.seen {
            Seen::Components(pca) if pca.missing().is_none() => Some(pca.ratios().to_vec()),
            _ => None,
        };
        let all: Option<Vec<Vec<f64>>> = self.layers.values().map(ratios).collect();
        let Some(all) = all else {
            return vec![usize::MAX; self.layers.len()];
        };
        let budget = self.layers.values().map(|layer| layer.rank).sum();
        let each = all.iter().enumerate();
        let mut shares: Vec<(f64, usize)> = each
            .flat_map(|(layer, ratios)| ratios.iter().map(move |ratio| (*ratio, layer)))
            .collect();
        // A stable sort: of two equal shares the first layer's comes first, so that a run can be
        // repeated.
        shares.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let mut ranks = vec![0; all.len()];
        for (_, layer) in shares.into_iter().take(budget) {
            ranks[layer] += 1;
        }
        ranks
    }
}

impl Mean {
    fn add(&mut self, value: Tensor) -> Result<()> {
        self.sum = Some(match self.sum.take() {
            Some(sum) => (sum + value)?,
            None => value,
        });
        self.count += 1;
        Ok(())
    }

    fn take(self) -> Result<Option<Tensor>> {
        let mean = |sum: Tensor| Ok((sum / self.count as f64)?);
        self.sum.map(mean).transpose()
    }
}

/// XᵀX of inputs divided by their largest value, as PEFT does, so that all batches weigh alike.
/// PEFT takes the largest value, not the largest magnitude. Here the magnitude serves if that value
/// is 0.
fn covariance(inputs: &Tensor) -> Result<Tensor> {
    let inputs = inputs.to_dtype(adapter_dtype(inputs.dtype()))?;
    let largest = |of: Tensor| -> Result<f64> {
        let largest = of.flatten_all()?.max(0)?.to_dtype(DType::F64)?;
        Ok(largest.to_device(&Device::Cpu)?.to_scalar::<f64>()?.abs())
    };
    let mut scale = largest(inputs.clone())?;
    if scale == 0.0 {
        scale = largest(inputs.abs()?)?;
    }
    if scale == 0.0 {
        scale = 1.0;
    }
    let inputs = (inputs / scale)?;
    let covariance = inputs.t()?.matmul(&inputs)?;
    check_sum("the covariance of the inputs", &covariance)?;
    Ok(covariance)
}

/// Checks the sum, as only one number then leaves the device. NaN and infinities cannot cancel out
/// in a sum.
fn check_sum(what: &str, tensor: &Tensor) -> Result<()> {
    let sum = tensor.to_dtype(DType::F64)?.sum_all()?;
    let sum = sum.to_device(&Device::Cpu)?.to_scalar::<f64>()?;
    match sum.is_finite() {
        true => Ok(()),
        false => Err(Error::layer("", format!("{what} is not finite"))),
    }
}

fn check_finite(what: &str, values: &[f64]) -> Result<()> {
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(Error::layer("", format!("{what} are not finite"))),
    }
}

impl Calibrated {
    /// The configuration for converting the model. EVA shares the ranks out anew: the rank and
    /// alpha of every layer become patterns of the layer's full path, and layers of rank 0 are
    /// excluded. Other initial values leave the configuration as it is.
    pub fn config(&self, config: &LoraConfig) -> LoraConfig {
        let mut config = config.clone();
        let found = self.layers.iter();
        let components: Vec<_> = found
            .filter_map(|(path, found)| match found {
                Found::Components(components) => Some((path, components)),
                _ => None,
            })
            .collect();
        if components.is_empty() {
            return config;
        }
        config.rank_pattern.clear();
        config.alpha_pattern.clear();
        let mut without = Vec::new();
        for (path, components) in components {
            let escaped = fancy_regex::escape(path).into_owned();
            if components.rank == 0 {
                without.push(escaped);
            } else {
                // Without `^` the pattern would also match paths that end with this one.
                let pattern = format!("^{escaped}");
                config = config
                    .rank_pattern(pattern.clone(), components.rank)
                    .alpha_pattern(pattern, components.alpha);
            }
        }
        if !without.is_empty() {
            // The layers to exclude are one expression, so that names set before become
            // expressions.
            let excluded = match config.exclude_modules.take() {
                Some(Targets::Regex(regex)) => vec![format!("(?:{regex})")],
                Some(Targets::Names(names)) => {
                    let names = names.iter();
                    let suffix = |name: &String| format!(r"(?:.*\.)?{}", fancy_regex::escape(name));
                    names.map(suffix).collect()
                }
                None => Vec::new(),
            };
            let all: Vec<String> = excluded.into_iter().chain(without).collect();
            config.exclude_modules = Some(Targets::Regex(all.join("|")));
        }
        config
    }

    pub(crate) fn components(&self, path: &str) -> Option<&Components> {
        match self.layers.get(path)? {
            Found::Components(components) => Some(components),
            _ => None,
        }
    }

    /// The mean of XᵀX over all batches of inputs X: (in, in).
    pub(crate) fn covariance(&self, path: &str) -> Option<&Tensor> {
        match self.layers.get(path)? {
            Found::Covariance(covariance) => Some(covariance),
            _ => None,
        }
    }

    /// The mean gradient of the weight over all batches: (out, in).
    pub(crate) fn gradient(&self, path: &str) -> Option<&Tensor> {
        match self.layers.get(path)? {
            Found::Gradient(gradient) => Some(gradient),
            _ => None,
        }
    }
}
