//! What a configuration selects: PEFT's rules, in one place for conversion and for files.

use crate::matching::{Patterns, modules_above};
use crate::{LoraConfig, Result, Settings};

/// A configuration with its patterns compiled. Each notes whether it was of use.
pub(crate) struct Selection<'a> {
    config: &'a LoraConfig,
    targets: Option<Patterns>,
    exclude: Option<Patterns>,
    save: Patterns,
    rank: Patterns,
    alpha: Patterns,
    recompute: Option<Patterns>,
}

/// What stands in place of the configuration's values where no pattern says otherwise.
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
        Ok(Self {
            config,
            targets: targets("target_modules", &config.target_modules)?,
            exclude: targets("exclude_modules", &config.exclude_modules)?,
            save: Patterns::names("modules_to_save", &config.modules_to_save),
            rank: Patterns::suffixes("rank_pattern", config.rank_pattern.keys())?,
            alpha: Patterns::suffixes("alpha_pattern", config.alpha_pattern.keys())?,
            recompute: targets("recompute", &config.recompute)?,
        })
    }

    /// True if modules_to_save names the layer or a module that it is in.
    pub(crate) fn saves(&mut self, path: &str) -> Result<bool> {
        let mut saves = false;
        for module in modules_above(path).chain([path]) {
            saves |= self.save.find(module, false)?.is_some();
        }
        Ok(saves)
    }

    /// True if target_modules names this path; `None` where it is not set.
    pub(crate) fn targets(&mut self, path: &str) -> Result<Option<bool>> {
        let targets = self.targets.as_mut();
        let found = targets
            .map(|targets| targets.find(path, false))
            .transpose()?;
        Ok(found.map(|found| found.is_some()))
    }

    /// True if exclude_modules names this path.
    pub(crate) fn excludes(&mut self, path: &str) -> Result<bool> {
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

    /// The adapter of a layer that is adapted.
    pub(crate) fn settings(&mut self, path: &str, overrides: Overrides) -> Result<Settings> {
        let config = self.config;
        let rank = match self.rank.find(path, true)? {
            Some(index) => config.rank_pattern[index],
            None => overrides.rank.unwrap_or(config.rank),
        };
        let alpha = match self.alpha.find(path, true)? {
            Some(index) => config.alpha_pattern[index],
            None => overrides.alpha.unwrap_or(config.alpha),
        };
        Ok(Settings {
            rank,
            alpha,
            scaling: config.scaling(rank, alpha),
            dropout: overrides.dropout.unwrap_or(config.dropout),
        })
    }

    /// The patterns that were of no use, as problems.
    pub(crate) fn unused(&self) -> impl Iterator<Item = String> {
        let optional = [&self.targets, &self.exclude, &self.recompute];
        let optional = optional.into_iter().flatten();
        let all = optional.chain([&self.save, &self.rank, &self.alpha]);
        all.flat_map(Patterns::unused)
    }
}
