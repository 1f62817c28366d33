//! [`Attach`]: gives each layer what a configuration asks for, when a model is converted and when
//! an adapter is added.

use super::fresh::{Residual, fresh};
use crate::adapter::AdaptedMut;
use crate::adapter::places::RECORDED;
use crate::adapter::{Parked, Tie, Tokens, copies, quantised};
use crate::config::matching::{is_bias, modules_above};
use crate::config::selection::Selection;
use crate::config::{Kind, Mark};
use crate::error::warn;
use crate::manage::oversized;
use crate::path::join;
use crate::{Adapted, Calibrated, Error, Init, Layer, LoraConfig, Result, Role, Settings};
use candle_core::Tensor;
use indexmap::IndexSet;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;

/// Where the values of a new adapter come from.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    /// The configuration's initial value makes the values.
    Fresh,
    /// The configuration's initial value makes the values from what the calibration found.
    Calibrated(&'a Calibrated),
    /// A file holds the values, which are put in place after the walk. The configuration alone
    /// chooses the layers then, not the model's attributes. A pattern without effect is no error,
    /// as every value of the file must find its place anyway.
    FromFile,
}

impl<'a> Values<'a> {
    /// True if the values are put in place after the walk.
    pub(crate) fn come_later(self) -> bool {
        matches!(self, Self::FromFile)
    }

    fn calibrated(self) -> Option<&'a Calibrated> {
        match self {
            Self::Calibrated(calibrated) => Some(calibrated),
            Self::Fresh | Self::FromFile => None,
        }
    }
}

/// A walk over layers that adds one adapter.
///
/// The walk collects every problem before it fails, so that one error lists all problems. Meanwhile
/// it attaches the adapter where it can: the caller drops the model when `finish` fails.
pub(crate) struct Attach<'a> {
    name: &'a str,
    config: &'a LoraConfig,
    selection: Selection<'a>,
    values: Values<'a>,
    /// The weights that quantised layers had in full precision, by path, where they are at hand.
    originals: HashMap<String, Tensor>,
    layers: Vec<(String, Kind)>,
    trained: usize,
    /// Layers whose rank is above the smaller side of their weight: path, rank and that side.
    oversized: Vec<(String, usize, usize)>,
    pub(crate) problems: Vec<String>,
}

impl<'a> Attach<'a> {
    pub(crate) fn new(
        name: &'a str,
        config: &'a LoraConfig,
        selection: Selection<'a>,
        values: Values<'a>,
    ) -> Self {
        Self {
            name,
            config,
            selection,
            values,
            originals: HashMap::new(),
            layers: Vec::new(),
            trained: 0,
            oversized: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Gives the weights that quantised layers had in full precision, by path.
    pub(super) fn with_originals(mut self, originals: HashMap<String, Tensor>) -> Self {
        self.originals = originals;
        self
    }

    /// Gives the layer its adapter and its copies, if the configuration asks for any. Both are
    /// trainable, and not active yet.
    pub(crate) fn layer(&mut self, path: &str, layer: &mut dyn Layer) -> Result<()> {
        let mark = layer.copies().and_then(|copies| copies.mark);
        self.marked_layer(path, mark, layer)
    }

    pub(crate) fn marked_layer(
        &mut self,
        path: &str,
        mark: Option<Mark>,
        layer: &mut dyn Layer,
    ) -> Result<()> {
        // A file's configuration is complete. A mark could add a layer that the file lacks.
        let mark = mark.filter(|_| !self.values.come_later());
        // A rank above a whole part is for those of its layers that take an adapter.
        let mark = mark.filter(|mark| mark.overrides().is_none() || layer.adapted().is_some());
        let choice = self.selection.choose(path, Some(layer.kind()), mark)?;
        let trainable = choice.trainable;
        let settings = self.checked(path, layer, choice.target);
        let settings = settings.filter(|_| !trainable);
        let train_bias =
            self.config.train_bias.trains(settings.is_some()) && self.selection.covers(path);
        self.layers.push((path.to_string(), layer.kind()));
        self.trained += usize::from(settings.is_some() || trainable);
        let mut base = None;
        if let (Some(settings), Some(adapted)) = (settings, layer.adapted_mut()) {
            let problem = adapted.refuses(&settings, self.config);
            match problem.or_else(|| self.refuses_start(path, adapted)) {
                Some(problem) => self.problems.push(format!("`{path}`: {problem}")),
                None => {
                    let largest = adapted.largest_rank();
                    if settings.rank > largest {
                        let path = path.to_string();
                        self.oversized.push((path, settings.rank, largest));
                    }
                    let (config, calibrated) = (self.config, self.values.calibrated());
                    let original = self.originals.get(path);
                    let (adapter, residual) =
                        fresh(adapted, self.name, settings, config, calibrated, original)?;
                    adapted.adapters_mut().list.push(adapter);
                    // A lasting change is made in the layer itself, and stays when the adapter is
                    // switched off. Any other residual base becomes the adapter's own copy.
                    match residual {
                        Residual::None => {}
                        Residual::Blocks(blocks) => quantised::replace(adapted, &blocks)?,
                        Residual::Full(changed) if config.init.is_lasting() => {
                            *adapted.weight_mut() = changed;
                        }
                        Residual::Full(changed) => base = Some(changed),
                    }
                }
            }
        }
        if trainable
            && layer
                .adapted()
                .is_some_and(|layer| layer.adapters().blocks.is_some())
        {
            self.problems.push(format!(
                "`{path}` is quantised, so it cannot be trained in full: load the layer in full \
                 precision, or give it an adapter"
            ));
            return Ok(());
        }
        self.tokens(path, layer, settings.is_some() || trainable)?;
        // Copies come last: only now is it known whether the adapter left a residual base.
        self.copies(path, layer, base, trainable, train_bias)
    }

    /// Why the initial values cannot be those of a layer that is quantised, if they cannot.
    fn refuses_start(&self, path: &str, layer: &dyn Adapted) -> Option<String> {
        layer.adapters().blocks.as_ref()?;
        let init = self.config.init;
        let problem = match init {
            Init::Loftq if !self.originals.contains_key(path) => {
                "needs its weight in full precision: convert the model in full precision with \
                 LoraConfig::quantize, or begin with another initial value and call \
                 peft::replace_lora_weights_loftq"
            }
            Init::PissaNiter(_) | Init::Corda | Init::LoraGa => {
                "leaves a base that loading could not make again: take `pissa`, `olora` or `loftq`"
            }
            _ => return None,
        };
        Some(format!("the layer is quantised, and `{init}` {problem}"))
    }

    /// Gives a layer with a vocabulary the rows that are trained.
    fn tokens(&mut self, path: &str, layer: &mut dyn Layer, is_taken: bool) -> Result<()> {
        let Some(ids) = self.selection.tokens(path)? else {
            return Ok(());
        };
        let kind = layer.kind();
        let rows = |layer: &&mut dyn Adapted| layer.is_lookup() || kind == Kind::Linear;
        match layer.adapted_mut().filter(rows) {
            _ if is_taken => self.problems.push(format!(
                "`{path}` is to have trained rows and is adapted or trained in full: choose one"
            )),
            None => self.problems.push(format!(
                "trainable_token_indices names `{path}`, a {kind}: rows can be trained of an \
                 Embedding, and of a Linear with an output for each token"
            )),
            Some(layer) => {
                let table = quantised::unmerged_values(layer)?;
                let tokens = Tokens::new(path, self.name, ids, &table)?;
                layer.adapters_mut().tokens.push(tokens);
                self.trained += 1;
            }
        }
        Ok(())
    }

    /// The settings of a target, if the layer can take an adapter with these settings. If the layer
    /// cannot, the reason becomes a problem.
    fn checked(
        &mut self,
        path: &str,
        layer: &dyn Layer,
        settings: Option<Settings>,
    ) -> Option<Settings> {
        let settings = settings?;
        if layer.adapted().is_none() {
            self.problems.push(format!(
                "`{path}` is a {}, which takes no adapter (linear, convolution and embedding layers \
                 and bare weights do); to train it in full, put it into modules_to_save",
                layer.kind()
            ));
            return None;
        }
        // The derive checks attributes; a `Mark` in code written by hand is not checked yet.
        if let Err(Error::Config(problems)) = LoraConfig::new(settings.rank)
            .alpha(settings.alpha)
            .dropout(settings.dropout)
            .validate()
        {
            let problems = problems.into_iter();
            self.problems
                .extend(problems.map(|problem| format!("`{path}`: {problem}")));
            return None;
        }
        if settings.dropout == 1.0 && !self.values.come_later() {
            self.problems.push(format!(
                "`{path}`: dropout is 1, so that nothing would be trained: it must be below 1"
            ));
            return None;
        }
        Some(settings)
    }

    /// Copies the layer's own parameters for the adapter, if the adapter trains any of them or has
    /// the residual base `base`. Variables are copied, too: training must not reach into the base
    /// model. A trained weight that several layers share is copied for each of them, as in PEFT.
    fn copies(
        &self,
        path: &str,
        layer: &mut dyn Layer,
        mut base: Option<Tensor>,
        trainable: bool,
        train_bias: bool,
    ) -> Result<()> {
        let is_changed = base.is_some();
        let weight = layer.adapted().map(|layer| layer.weight_name());
        let (mut tensors, mut trained) = (Vec::new(), Vec::new());
        for param in layer.params() {
            if param.is_adapters() {
                continue;
            }
            let is_trained = trainable || (train_bias && is_bias(&join(path, &param.name)));
            let is_trained =
                is_trained && param.role == Role::Base && param.tensor.dtype().is_float();
            let mut tensor: Tensor = match base.take_if(|_| Some(&*param.name) == weight) {
                Some(base) => base,
                None => param.tensor.detach(),
            };
            Parked::default().set_trainable(0, &mut tensor, is_trained)?;
            RECORDED.replace(param.tensor.id(), &tensor);
            tensors.push(tensor);
            trained.push(is_trained);
        }
        if is_changed || trained.contains(&true) {
            let shares = layer.adapted().is_some_and(|layer| layer.is_lookup());
            let tie = match self.config.ensure_weight_tying && trainable && shares {
                true => Tie::Shares,
                false => Tie::None,
            };
            copies::add(layer, path, self.name, tensors, trained, tie)?;
        }
        Ok(())
    }

    /// Ends the walk: every pattern must have had an effect, and something must be trained. `parts`
    /// are the parts that `recompute` may name.
    pub(crate) fn finish(mut self, parts: Vec<String>) -> Result<()> {
        let mut problems = std::mem::take(&mut self.problems);
        let layers = std::mem::take(&mut self.layers);
        let modules: BTreeSet<&str> = layers
            .iter()
            .flat_map(|(path, _)| modules_above(path))
            .collect();
        for module in modules {
            if self.selection.names(module)? {
                problems.push(format!(
                    "target_modules matches `{module}`, which is a module that holds layers; \
                     name the layers themselves"
                ));
            }
        }
        if !self.values.come_later() || self.trained == 0 {
            problems.extend(self.selection.unused());
        }
        if problems.is_empty() && self.trained == 0 {
            problems.push(
                "nothing is adapted or trained: mark fields with `#[lora(rank)]` or set \
                 target_modules"
                    .into(),
            );
        }
        if problems.is_empty() {
            // A file's rank was chosen when its adapter was made: a warning would come too late.
            if !self.values.come_later() {
                let layers = self.oversized.iter();
                let layers = layers.map(|(path, rank, largest)| (path.as_str(), *rank, *largest));
                oversized(&layers.collect::<Vec<_>>())
                    .iter()
                    .for_each(|note| warn(note));
            }
            return Ok(());
        }
        problems.push(format!("the model has: {}", outline(&layers)));
        if self.config.recompute.is_some() {
            let parts: Vec<_> = parts.into_iter().map(|path| (path, "Recompute")).collect();
            problems.push(format!("parts that can be recomputed: {}", outline(&parts)));
        }
        Err(Error::Config(problems))
    }
}

/// The layers, with `*` for numbers, so that repeated layers are listed once:
/// `layers.*.fc1 (Linear)`.
fn outline(layers: &[(String, impl Display)]) -> String {
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
