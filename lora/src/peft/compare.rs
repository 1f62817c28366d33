//! Where a configuration and a model disagree: PEFT's rules, without its leniency.

use super::describe::{Description, Site};
use crate::config::Kind;
use crate::config::matching::{is_or_ends_with, is_or_starts_with};
use crate::config::selection::Selection;
use crate::{LoraConfig, Result, Settings};
use indexmap::IndexMap;

impl Description {
    /// The rows of embeddings that a configuration trains, by the embedding's path.
    pub fn planned_tokens(&self, config: &LoraConfig) -> Result<IndexMap<String, Vec<u32>>> {
        let mut selection = Selection::new(config)?;
        let mut planned = IndexMap::new();
        for site in self
            .sites
            .iter()
            .filter(|site| site.kind == Kind::Embedding)
        {
            if let Some(ids) = selection.tokens(&site.path)? {
                planned.insert(site.path.clone(), ids.to_vec());
            }
        }
        Ok(planned)
    }

    /// The layers that a configuration adapts, with their settings. By PEFT's rules, but entries
    /// that match nothing are no error.
    pub fn planned(&self, config: &LoraConfig) -> Result<IndexMap<String, Settings>> {
        self.planned_by(&mut Selection::new(config)?)
    }

    /// As [`planned`](Self::planned), by a selection that notes which patterns have an effect.
    pub fn planned_by(&self, selection: &mut Selection<'_>) -> Result<IndexMap<String, Settings>> {
        let mut planned = IndexMap::new();
        for site in self.sites.iter().filter(|site| site.adaptable) {
            let path = site.path.as_str();
            let choice = selection.choose(path, Some(site.kind), None)?;
            if let Some(settings) = choice.adapter() {
                planned.insert(path.to_string(), settings);
            }
        }
        Ok(planned)
    }

    /// The modules that a configuration trains in full, without modules inside another of them.
    pub fn planned_saved(&self, config: &LoraConfig) -> Vec<String> {
        let names = &config.modules_to_save;
        let matches = |path: &str| {
            let meant = config.naming.meant(path);
            let is_named = |path: &str| names.iter().any(|name| is_or_ends_with(path, name));
            meant.is_some_and(|path| is_named(&path))
        };
        let modules = self.modules();
        let all: Vec<&str> = modules
            .into_iter()
            .filter(|module| matches(module))
            .collect();
        let outermost = all.iter().filter(|module| {
            !all.iter()
                .any(|other| other != *module && is_or_starts_with(module, other))
        });
        outermost.map(|module| module.to_string()).collect()
    }

    /// Every point in which a configuration does not describe this model.
    pub fn disagreements(&self, config: &LoraConfig) -> Result<Vec<String>> {
        let mut problems = self.problems.clone();
        let mut planned = self.planned(config)?;
        // A tied adapter follows from that of its embedding, whether or not the file names it.
        let tied = self.sites.iter().filter(|site| site.tied_to.is_some());
        for site in tied {
            planned.shift_remove(&site.path);
        }
        for (path, mine) in self.adapted() {
            let Some(theirs) = planned.shift_remove(path) else {
                problems.push(format!(
                    "`{path}` has an adapter in the model, but is no target of the file"
                ));
                continue;
            };
            if mine.rank != theirs.rank {
                problems.push(format!(
                    "`{path}` has rank {} in the model, {} in the file",
                    mine.rank, theirs.rank
                ));
            } else if (mine.scaling - theirs.scaling).abs() > 1e-9 * mine.scaling.abs() {
                problems.push(format!(
                    "`{path}` has scaling {} (alpha {}) in the model, {} (alpha {}) in the file",
                    mine.scaling, mine.alpha, theirs.scaling, theirs.alpha
                ));
            }
        }
        for path in planned.keys() {
            problems.push(format!(
                "`{path}` is a target of the file, but has no adapter in the model"
            ));
        }
        self.compare_saved(config, &mut problems);
        for (key, part, theirs) in config.parts() {
            if self.has(part) != theirs {
                let mine = self.has(part);
                problems.push(format!(
                    "`{key}` is {theirs} in the file, {mine} in the model"
                ));
            }
        }
        if self.planned_tokens(config)? != self.tokens() {
            problems.push(format!(
                "trainable_token_indices are {:?} in the file, {:?} in the model",
                self.planned_tokens(config)?,
                self.tokens()
            ));
        }
        for (key, adapted, trained) in self.biases() {
            let wanted = config.train_bias.trains(adapted) && config.naming.back(&key).is_some();
            if trained != wanted && self.planned_module(config, &key).is_none() {
                problems.push(match trained {
                    true => format!("the model trains `{key}`, the file's `bias` does not say so"),
                    false => format!("the file's `bias` trains `{key}`, the model does not"),
                });
            }
        }
        Ok(problems)
    }

    fn planned_module(&self, config: &LoraConfig, key: &str) -> Option<String> {
        let mut saved = self.planned_saved(config).into_iter();
        saved.find(|module| is_or_starts_with(key, module))
    }

    fn compare_saved(&self, config: &LoraConfig, problems: &mut Vec<String>) {
        let planned = self.planned_saved(config);
        // A module trained as a whole and all its layers trained one by one are the same.
        let covered = |site: &Site, modules: &[String]| {
            modules
                .iter()
                .any(|module| is_or_starts_with(&site.path, module))
        };
        for site in self
            .sites
            .iter()
            .filter(|site| site.base_params().next().is_some() && !site.has_tied_copy)
        {
            let path = &site.path;
            match (covered(site, &self.saved), covered(site, &planned)) {
                (true, false) => problems.push(format!(
                    "`{path}` is trained in full in the model, but not in the file's modules_to_save"
                )),
                (false, true) => problems.push(format!(
                    "`{path}` is in the file's modules_to_save, but not trained in full in the model"
                )),
                _ => {}
            }
        }
    }
}
