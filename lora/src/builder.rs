//! [`Builder`]: the walk that converts a base model, deciding for each layer what is trained.

use crate::adapter::{Adapter, DEFAULT_ADAPTER, Settings};
use crate::init::AdapterInit;
use crate::matching::modules_above;
use crate::params::each_layer;
use crate::path::Path;
use crate::selection::{Overrides, Selection};
use crate::{Error, Lora, LoraConfig, LoraModel, LoraModule, Result, TrainBias, WithLora};
use candle_core::{Device, Tensor, TensorId, Var};
use indexmap::IndexSet;
use std::collections::{BTreeSet, HashMap, HashSet};

/// The walk over a base model that builds its LoRA model, handed to [`LoraModel::adapt`].
///
/// It knows the path it has reached, the configuration, and what the attributes on the way said.
///
/// ```
/// use candle_nn::Linear;
/// use lora::{Builder, Lora, Mark, Result};
///
/// struct Gated { gate: Linear, up: Linear }
/// struct LoraGated { gate: Lora<Linear>, up: Lora<Linear> }
///
/// impl Gated {
///     fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraGated> {
///         Ok(LoraGated {
///             gate: cx.field("gate_proj", &self.gate)?,
///             up: cx.marked("up_proj", Mark::rank(), &self.up)?,
///         })
///     }
/// }
/// ```
pub struct Builder<'a> {
    config: &'a LoraConfig,
    path: Path,
    mark: Option<Mark>,
    for_values: bool,
    freeze: bool,
    selection: Selection<'a>,
    seen: Seen,
    /// Base tensors by identity, so that tied weights stay tied.
    frozen: HashMap<TensorId, Tensor>,
    devices: Vec<Device>,
}

/// What a field's attribute says of the layers below it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark(Kind);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Rank(Overrides),
    Trainable,
}

impl Mark {
    /// `#[lora(rank)]`: a target by default, with the configuration's rank.
    pub const fn rank() -> Self {
        Self::rank_with(None, None)
    }

    /// `#[lora(rank = N)]`, and `alpha` and `dropout` where they are given: they replace the
    /// configuration's values, and its rank and alpha patterns replace them.
    pub const fn rank_of(rank: usize, alpha: Option<f64>, dropout: Option<f64>) -> Self {
        Self(Kind::Rank(Overrides {
            rank: Some(rank),
            alpha,
            dropout,
        }))
    }

    /// `#[lora(rank, alpha = A, dropout = P)]`: the configuration's rank, these values.
    pub const fn rank_with(alpha: Option<f64>, dropout: Option<f64>) -> Self {
        Self(Kind::Rank(Overrides {
            rank: None,
            alpha,
            dropout,
        }))
    }

    /// `#[lora(trainable)]`: trained in full and saved with the adapter.
    pub const fn trainable() -> Self {
        Self(Kind::Trainable)
    }
}

/// What the walk has come by, for the check at its end and for its messages.
#[derive(Default)]
struct Seen {
    layers: Vec<(String, &'static str)>,
    paths: HashSet<String>,
    trained: usize,
    /// The parts that `recompute` may name.
    recomputable: Vec<String>,
    problems: Vec<String>,
}

/// What is trained of one layer. Made by [`Builder::layer`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// The adapter to add.
    pub adapter: Option<Settings>,
    /// The layer's own parameters are trained.
    pub trainable: bool,
    /// The layer's bias is trained.
    pub train_bias: bool,
}

impl Plan {
    /// The adapter's rank; 1 where there is no adapter and the rank does not matter.
    pub(crate) fn rank(&self) -> usize {
        self.adapter.map_or(1, |settings| settings.rank)
    }
}

impl<'a> Builder<'a> {
    pub(crate) fn convert<M: LoraModel>(model: &M, config: &'a LoraConfig) -> Result<Lora<M>> {
        Self::convert_with(model, config, false)
    }

    /// Converts for an adapter that comes with its values: the configuration alone decides, not
    /// the model's attributes. A pattern without effect is no error, as every value must find its
    /// place anyway.
    pub(crate) fn convert_for_values<M: LoraModel>(
        model: &M,
        config: &'a LoraConfig,
    ) -> Result<Lora<M>> {
        Self::convert_with(model, config, true)
    }

    fn convert_with<M: LoraModel>(
        model: &M,
        config: &'a LoraConfig,
        for_values: bool,
    ) -> Result<Lora<M>> {
        config.validate()?;
        let mut builder = Self::new(config, Selection::new(config)?, false);
        builder.for_values = for_values;
        if !for_values && is_layer(&Self::freeze(model)?) {
            builder.mark = Some(Mark::rank());
        }
        let lora = model.adapt(&mut builder)?;
        builder.finish()?;
        Ok(lora)
    }

    pub(crate) fn freeze<M: LoraModel>(model: &M) -> Result<Lora<M>> {
        let config = LoraConfig::default();
        let selection = Selection::new(&config)?;
        let mut builder = Builder::new(&config, selection, true);
        let lora = model.adapt(&mut builder)?;
        match builder.seen.problems {
            problems if problems.is_empty() => Ok(lora),
            problems => Err(Error::Config(problems)),
        }
    }

    fn new(config: &'a LoraConfig, selection: Selection<'a>, freeze: bool) -> Self {
        Self {
            config,
            path: Path::default(),
            mark: None,
            for_values: false,
            freeze,
            selection,
            seen: Seen::default(),
            frozen: HashMap::new(),
            devices: vec![Device::Cpu],
        }
    }

    /// Converts a part of the model under this name. The marks from above go on.
    ///
    /// # Errors
    /// Those of the part's [`adapt`](LoraModel::adapt).
    pub fn field<M: LoraModel>(&mut self, name: &str, part: &M) -> Result<M::Lora> {
        self.at(name, self.mark, |cx| part.adapt(cx))
    }

    /// Converts a part of the model under this name, with the mark of its attribute.
    ///
    /// # Errors
    /// Those of the part's [`adapt`](LoraModel::adapt).
    pub fn marked<M: LoraModel>(&mut self, name: &str, mark: Mark, part: &M) -> Result<M::Lora> {
        self.at(name, self.stronger(mark), |cx| part.adapt(cx))
    }

    /// Converts a part of the model at the present path, with the mark of its attribute: for
    /// `#[lora(flatten, ..)]`. Without a mark, call [`adapt`](LoraModel::adapt) itself.
    ///
    /// # Errors
    /// Those of the part's [`adapt`](LoraModel::adapt).
    pub fn flattened<M: LoraModel>(&mut self, mark: Mark, part: &M) -> Result<M::Lora> {
        let below = self.stronger(mark);
        let above = std::mem::replace(&mut self.mark, below);
        let result = part.adapt(self);
        self.mark = above;
        result
    }

    /// A model's own configuration together with that of the conversion: for `#[lora(config)]`.
    pub fn config<C: Clone>(&self, base: &C) -> WithLora<C> {
        WithLora::new(base.clone(), self.config.clone())
    }

    /// What is below a fully trained module is trained in full, whatever its own mark says.
    fn stronger(&self, mark: Mark) -> Option<Mark> {
        match self.mark {
            _ if self.for_values => None,
            Some(Mark(Kind::Trainable)) => Some(Mark::trainable()),
            _ => Some(mark),
        }
    }

    fn at<T>(
        &mut self,
        name: &str,
        mark: Option<Mark>,
        adapt: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let length = self.path.push(name);
        let above = std::mem::replace(&mut self.mark, mark);
        let result = adapt(self);
        self.path.truncate(length);
        self.mark = above;
        result
    }

    /// Registers a layer at the present path and says what is trained of it.
    ///
    /// `kind` is the name for messages, `adaptable` whether it can carry an adapter. Called once by
    /// every layer, before it asks for its tensors with [`parameter`](Self::parameter).
    ///
    /// # Errors
    /// If a pattern takes too long to match.
    pub fn layer(&mut self, kind: &'static str, adaptable: bool) -> Result<Plan> {
        let path = self.path.as_str().to_string();
        // Looked up in any case, so that the pattern counts as used.
        let saved = self.selection.saves(&path)?;
        let trainable = !self.freeze && (saved || self.mark == Some(Mark::trainable()));
        let adapter = self.target(&path, kind, adaptable)?;
        let adapter = adapter.filter(|_| !self.freeze && !trainable);
        let train_bias = !self.freeze
            && match self.config.train_bias {
                TrainBias::None => false,
                TrainBias::LoraOnly => adapter.is_some(),
                TrainBias::All => true,
            };
        if !self.seen.paths.insert(path.clone()) {
            let problem =
                format!("two layers are called `{path}`; `#[lora(name = \"..\")]` renames one");
            self.seen.problems.push(problem);
        }
        self.seen.layers.push((path, kind));
        self.seen.trained += usize::from(adapter.is_some() || trainable);
        Ok(Plan {
            adapter,
            trainable,
            train_bias: train_bias || trainable,
        })
    }

    fn target(
        &mut self,
        path: &str,
        kind: &'static str,
        adaptable: bool,
    ) -> Result<Option<Settings>> {
        // Each is looked up in any case, so that the pattern counts as used.
        let excluded = self.selection.excludes(path)?;
        let mark = match self.mark {
            Some(Mark(Kind::Rank(overrides))) => Some(overrides),
            _ => None,
        };
        let targeted = self.selection.targets(path)?;
        let targeted = targeted.unwrap_or(mark.is_some());
        if !targeted || excluded || self.freeze {
            return Ok(None);
        }
        if !adaptable {
            self.seen.problems.push(format!(
                "`{path}` is a {kind}, which takes no adapter (Linear, Conv1d, Conv2d and Embedding \
                 do); to train it in full, put it into modules_to_save"
            ));
            return Ok(None);
        }
        let settings = self.selection.settings(path, mark.unwrap_or_default())?;
        // Attributes come checked from the derive, but not from code by hand.
        if let Err(Error::Config(problems)) = LoraConfig::new(settings.rank)
            .alpha(settings.alpha)
            .dropout(settings.dropout)
            .validate()
        {
            problems
                .into_iter()
                .for_each(|problem| self.problem(problem));
            return Ok(None);
        }
        Ok(Some(settings))
    }

    /// A tensor of the base model as a parameter: shared and frozen, or copied into a variable.
    /// Tied tensors that are frozen stay tied; one that is trained is a copy of its own at each
    /// place, as in PEFT.
    ///
    /// # Errors
    /// If the copy cannot be made.
    pub fn parameter(&mut self, tensor: &Tensor, trainable: bool) -> Result<Tensor> {
        let device = tensor.device();
        if !self.devices.iter().any(|known| known.same_device(device)) {
            self.devices.push(device.clone());
        }
        if trainable && tensor.dtype().is_float() {
            // A copy even of a variable: training must not reach into the base model.
            return Ok(Var::from_tensor(&tensor.detach())?.into_inner());
        }
        let frozen = self.frozen.entry(tensor.id());
        Ok(frozen.or_insert_with(|| tensor.detach()).clone())
    }

    /// The weight and bias of a layer, as [`parameter`](Self::parameter)s of its plan.
    pub(crate) fn weight_and_bias(
        &mut self,
        plan: &Plan,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let weight = self.parameter(weight, plan.trainable)?;
        let bias = bias.map(|bias| self.parameter(bias, plan.train_bias));
        Ok((weight, bias.transpose()?))
    }

    /// A fresh adapter for the layer at the present path, if its plan has one.
    pub(crate) fn adapter(
        &mut self,
        plan: &Plan,
        init: AdapterInit<'_>,
    ) -> Result<Option<Adapter>> {
        let Some(settings) = plan.adapter else {
            return Ok(None);
        };
        let (a, b) = init.draw(self.config, self.path.as_str(), settings.rank)?;
        Ok(Some(Adapter {
            name: DEFAULT_ADAPTER.into(),
            a,
            b,
            settings,
        }))
    }

    /// Whether the part at the present path is to be computed anew in the backward pass.
    pub(crate) fn recomputes(&mut self) -> Result<bool> {
        self.seen.recomputable.push(self.path.as_str().to_string());
        self.selection.recomputes(self.path.as_str())
    }

    /// Notes something that keeps the model from being converted, for the list at the end.
    pub(crate) fn problem(&mut self, problem: impl Into<String>) {
        let problem = format!("`{}`: {}", self.path.as_str(), problem.into());
        self.seen.problems.push(problem);
    }

    /// The CPU, and the devices of the tensors met so far.
    pub(crate) fn devices(&self) -> &[Device] {
        &self.devices
    }

    pub(crate) fn path(&self) -> &str {
        self.path.as_str()
    }

    /// The end of the walk: every pattern must have been of use, and something must be trained.
    fn finish(mut self) -> Result<()> {
        let mut problems = std::mem::take(&mut self.seen.problems);
        let layers = std::mem::take(&mut self.seen.layers);
        let modules: BTreeSet<&str> = layers
            .iter()
            .flat_map(|(path, _)| modules_above(path))
            .collect();
        for module in modules {
            if self.selection.targets(module)? == Some(true) {
                problems.push(format!(
                    "target_modules matches `{module}`, which is a module that holds layers; \
                     name the layers themselves"
                ));
            }
        }
        if !self.for_values || self.seen.trained == 0 {
            problems.extend(self.selection.unused());
        }
        if problems.is_empty() && self.seen.trained == 0 {
            problems.push(
                "nothing is adapted or trained: mark fields with `#[lora(rank)]` or set \
                 target_modules"
                    .into(),
            );
        }
        if problems.is_empty() {
            return Ok(());
        }
        problems.push(format!("the model has: {}", outline(&layers)));
        if self.config.recompute.is_some() {
            let parts = std::mem::take(&mut self.seen.recomputable).into_iter();
            let parts: Vec<_> = parts.map(|path| (path, "Recompute")).collect();
            problems.push(format!("parts that can be recomputed: {}", outline(&parts)));
        }
        Err(Error::Config(problems))
    }
}

/// True for a model that is a single layer: converted on its own, it is its own target.
fn is_layer<M: LoraModule>(model: &M) -> bool {
    let (mut lone, mut count) = (false, 0);
    each_layer(model, |path, layer| {
        lone = path.is_empty() && layer.adapted().is_some();
        count += 1;
    });
    lone && count == 1
}

/// The layers, with the numbers of repeated ones left out: `layers.*.fc1 (Linear)`.
fn outline(layers: &[(String, &'static str)]) -> String {
    let mut lines = IndexSet::new();
    for (path, kind) in layers {
        let segments = path
            .split('.')
            .map(|segment| match segment.parse::<usize>() {
                Ok(_) => "*",
                Err(_) => segment,
            });
        let path = segments.collect::<Vec<_>>().join(".");
        lines.insert(format!("{path} ({kind})"));
    }
    if lines.is_empty() {
        return "none".into();
    }
    lines.into_iter().collect::<Vec<_>>().join(", ")
}
