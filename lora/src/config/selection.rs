//! Which layers a configuration selects: PEFT's rules, in one place for conversion and for files.

use super::matching::{LayerNumbers, Patterns, modules_above};
use super::{Kind, LoraConfig, Mark, Settings, Targets};
use crate::path::join;
use crate::{Error, Result};
use std::borrow::Cow;

/// A configuration with compiled patterns. Each pattern notes whether it had an effect.
///
/// Paths are the model's. Where the configuration comes from a file with other paths, the patterns
/// see the file's.
pub(crate) struct Selection<'a> {
    config: &'a LoraConfig,
    targets: Option<Chosen>,
    layers: Option<LayerNumbers>,
    exclude: Option<Patterns>,
    save: Patterns,
    rank: Patterns,
    alpha: Patterns,
    recompute: Option<Patterns>,
    quantize: Option<Patterns>,
    tokens: Patterns,
    parameters: Patterns,
}

/// The layers that target_modules chooses.
enum Chosen {
    /// The word `all-linear`, in upper or lower case.
    AllLinear,
    Named(Patterns),
}

impl Chosen {
    fn new(targets: &Targets) -> Result<Self> {
        match targets {
            Targets::Regex(word) if word.eq_ignore_ascii_case("all-linear") => Ok(Self::AllLinear),
            targets => Ok(Self::Named(Patterns::targets("target_modules", targets)?)),
        }
    }

    fn patterns(&self) -> Option<&Patterns> {
        match self {
            Self::AllLinear => None,
            Self::Named(patterns) => Some(patterns),
        }
    }
}

/// True for the layer that gives a language model's scores: `all-linear` leaves it out, as PEFT
/// does.
fn is_output_embedding(path: &str) -> bool {
    let name = path.rsplit('.').next().unwrap_or(path);
    ["lm_head", "embed_out", "output_layer"].contains(&name)
}

/// What an adapter does at a layer.
pub(crate) struct Choice {
    /// The layer is trained in full: an attribute or modules_to_save says so.
    pub(crate) trainable: bool,
    /// The layer is a target, with these settings.
    pub(crate) target: Option<Settings>,
}

impl Choice {
    /// The settings of the layer's low-rank update. A layer that is trained in full gets none.
    pub(crate) fn adapter(&self) -> Option<Settings> {
        self.target.filter(|_| !self.trainable)
    }
}

/// Whether the settings fail to give one of these paths its rank, and how many patterns have no
/// effect. Of two readings of a file's paths, the one that fits the settings better is meant.
pub(crate) fn misfits(
    config: &LoraConfig,
    ranks: impl IntoIterator<Item = (String, usize)>,
) -> Result<(bool, usize)> {
    let mut selection = Selection::new(config)?;
    let mut fits = true;
    for (path, rank) in ranks {
        fits &= selection.settings(&path, Overrides::default())?.rank == rank;
    }
    Ok((!fits, selection.unused().count()))
}

/// The values of an attribute. They replace the configuration's values, except where a pattern
/// wins.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Overrides {
    pub(crate) rank: Option<usize>,
    pub(crate) alpha: Option<f64>,
    pub(crate) dropout: Option<f64>,
}

impl<'a> Selection<'a> {
    pub(crate) fn new(config: &'a LoraConfig) -> Result<Self> {
        let targets = |setting, targets: &Option<_>| -> Result<Option<Patterns>> {
            let targets = targets.as_ref();
            targets.map(|t| Patterns::targets(setting, t)).transpose()
        };
        let tokens: Vec<String> = config.trainable_token_indices.keys().cloned().collect();
        Ok(Self {
            config,
            targets: config
                .target_modules
                .as_ref()
                .map(Chosen::new)
                .transpose()?,
            layers: LayerNumbers::new(config)?,
            exclude: targets("exclude_modules", &config.exclude_modules)?,
            save: Patterns::names("modules_to_save", &config.modules_to_save),
            rank: Patterns::suffixes("rank_pattern", config.rank_pattern.keys())?,
            alpha: Patterns::suffixes("alpha_pattern", config.alpha_pattern.keys())?,
            recompute: targets("recompute", &config.recompute)?,
            quantize: targets("quantize_modules", &config.quantize_modules)?,
            parameters: Patterns::names("target_parameters", &config.target_parameters),
            tokens: Patterns::names("trainable_token_indices", &tokens),
        })
    }

    /// What an adapter does at a layer: the one place that decides.
    ///
    /// Every setting is asked in any case, so that a pattern counts as used even where another
    /// setting outweighs it. `kind` is `None` where only files are at hand: they do not hold kinds.
    pub(crate) fn choose(
        &mut self,
        path: &str,
        kind: Option<Kind>,
        mark: Option<Mark>,
    ) -> Result<Choice> {
        let Some(path) = self.named(path) else {
            let (trainable, target) = (false, None);
            return Ok(Choice { trainable, target });
        };
        let saved = self.saves(&path)?;
        let excluded = self.excludes(&path)?;
        let overrides = mark.and_then(Mark::overrides);
        let weight = join(&path, "weight");
        let by_weight = kind == Some(Kind::Linear) && self.names_parameter(&weight)?;
        let by_module = self.targets(&path, kind, overrides.is_some())?;
        if by_weight && by_module && self.targets.is_some() {
            return Err(Error::Config(vec![format!(
                "target_modules names `{path}`, and target_parameters its weight: choose one"
            )]));
        }
        // PEFT asks the patterns for the name of the parameter.
        let name: &str = if by_weight { &weight } else { &path };
        Ok(Choice {
            trainable: saved || mark == Some(Mark::trainable()),
            target: match (by_module || by_weight) && !excluded {
                true => Some(self.settings_of(name, overrides.unwrap_or_default())?),
                false => None,
            },
        })
    }

    /// True if target_parameters names this parameter.
    fn names_parameter(&mut self, path: &str) -> Result<bool> {
        Ok(self.parameters.find(path, false)?.is_some())
    }

    /// A layer's path as the configuration means it; `None` for a layer outside of the model that
    /// the configuration is for.
    fn named<'b>(&self, path: &'b str) -> Option<Cow<'b, str>> {
        self.config.naming.meant(path)
    }

    /// True if the layer is one of the model that the configuration is for.
    pub(crate) fn covers(&self, path: &str) -> bool {
        self.named(path).is_some()
    }

    /// True if modules_to_save names the layer or a module that holds the layer.
    fn saves(&mut self, path: &str) -> Result<bool> {
        let mut saves = false;
        // No early return: every name that matches must count as used.
        for module in modules_above(path).chain([path]) {
            saves |= self.save.find(module, false)?.is_some();
        }
        Ok(saves)
    }

    /// True if target_modules names the layer, and layers_to_transform has the layer's number.
    /// Where target_modules is not set, the layer's attribute decides instead (`marked`).
    fn targets(&mut self, path: &str, kind: Option<Kind>, marked: bool) -> Result<bool> {
        if kind.is_some_and(Kind::is_bare) {
            let found = self.names_parameter(path)?;
            let by_mark = self.config.target_parameters.is_empty() && self.targets.is_none();
            return Ok(found || (by_mark && marked));
        }
        let chosen = match &mut self.targets {
            None => marked,
            Some(Chosen::AllLinear) => {
                kind.is_some_and(Kind::is_linear) && !is_output_embedding(path)
            }
            Some(Chosen::Named(patterns)) => {
                let found = patterns.find(path, false)?.is_some();
                // A target that is given with its whole path needs no number.
                if found && patterns.holds(path) {
                    return Ok(true);
                }
                found
            }
        };
        match &mut self.layers {
            Some(layers) if chosen => layers.has(path),
            _ => Ok(chosen),
        }
    }

    /// True if target_modules names this path, whether or not a layer has it.
    pub(crate) fn names(&mut self, path: &str) -> Result<bool> {
        match (self.named(path), &mut self.targets) {
            (Some(path), Some(Chosen::Named(patterns))) => {
                Ok(patterns.find(&path, false)?.is_some())
            }
            _ => Ok(false),
        }
    }

    /// True if exclude_modules names this path.
    fn excludes(&mut self, path: &str) -> Result<bool> {
        match &mut self.exclude {
            Some(exclude) => Ok(exclude.find(path, false)?.is_some()),
            None => Ok(false),
        }
    }

    /// True if recompute names this path.
    pub(crate) fn recomputes(&mut self, path: &str) -> Result<bool> {
        match &mut self.recompute {
            Some(recompute) => Ok(recompute.find(path, false)?.is_some()),
            None => Ok(false),
        }
    }

    /// Whether quantize_modules names this path; `None` where it is not set.
    pub(crate) fn quantises(&mut self, path: &str) -> Result<Option<bool>> {
        let Some(path) = self.named(path) else {
            return Ok(Some(false));
        };
        match &mut self.quantize {
            Some(quantize) => Ok(Some(quantize.find(&path, false)?.is_some())),
            None => Ok(None),
        }
    }

    /// True for the layer that gives a language model's scores.
    pub(crate) fn is_output(&self, path: &str) -> bool {
        is_output_embedding(path)
    }

    /// The rows of this layer that are trained.
    pub(crate) fn tokens(&mut self, path: &str) -> Result<Option<&'a [u32]>> {
        let found = match self.named(path) {
            Some(path) => self.tokens.find(&path, false)?,
            None => None,
        };
        Ok(found.map(|index| &self.config.trainable_token_indices[index][..]))
    }

    /// The settings of a target's adapter.
    pub(crate) fn settings(&mut self, path: &str, overrides: Overrides) -> Result<Settings> {
        let path = self.named(path).unwrap_or(path.into());
        self.settings_of(&path, overrides)
    }

    /// As [`settings`](Self::settings), for a path as the configuration means it.
    fn settings_of(&mut self, path: &str, overrides: Overrides) -> Result<Settings> {
        let config = self.config;
        let rank = match self.rank.find(path, true)? {
            Some(index) => config.rank_pattern[index],
            None => overrides.rank.unwrap_or(config.rank),
        };
        let alpha = match self.alpha.find(path, true)? {
            Some(index) => config.alpha_pattern[index],
            None => overrides.alpha.unwrap_or(config.alpha),
        };
        let dropout = overrides.dropout.unwrap_or(config.dropout);
        Ok(Settings::new(rank, alpha, config.use_rslora, dropout))
    }

    /// The patterns without effect, as problems.
    pub(crate) fn unused(&self) -> impl Iterator<Item = String> {
        let targets = self.targets.as_ref().and_then(Chosen::patterns);
        let optional = [&self.exclude, &self.recompute, &self.quantize];
        let optional = optional.into_iter().flatten();
        let all = targets.into_iter().chain(optional);
        let all = all.chain([
            &self.save,
            &self.rank,
            &self.alpha,
            &self.tokens,
            &self.parameters,
        ]);
        let layers = self.layers.iter().flat_map(LayerNumbers::unused);
        all.flat_map(Patterns::unused).chain(layers)
    }
}
