//! Where a configuration and a model disagree: PEFT's rules, without its leniency.

use super::describe::Description;
use crate::config::Kind;
use crate::config::matching::{ends, holder, outermost};
use crate::config::selection::Selection;
use crate::{LoraConfig, Result, Settings};
use indexmap::IndexMap;
use std::collections::{BTreeSet, HashSet};

impl Description {
    /// The rows of vocabularies that a configuration trains, by the layer's path.
    pub fn planned_tokens(&self, config: &LoraConfig) -> Result<IndexMap<String, Vec<u32>>> {
        let mut selection = Selection::new(config)?;
        let mut planned = IndexMap::new();
        for site in self
            .sites
            .iter()
            .filter(|site| matches!(site.kind, Kind::Embedding | Kind::Linear))
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
        let names = config.modules_to_save.iter().map(String::as_str);
        let names: HashSet<&str> = names.collect();
        let mut modules: BTreeSet<&str> = self.modules();
        modules.retain(|module| {
            let meant = config.naming.meant(module);
            meant.is_some_and(|path| ends(&path).any(|end| names.contains(end)))
        });
        outermost(&modules).map(String::from).collect()
    }

    /// Every point in which a configuration does not describe this model.
    pub fn disagreements(&self, config: &LoraConfig) -> Result<Vec<String>> {
        let mut problems = self.problems.clone();
        let planned = self.planned(config)?;
        // A tied adapter follows from that of its embedding, whether or not the file names it.
        let tied = self.sites.iter().filter(|site| site.tied_to.is_some());
        let mut known: HashSet<&str> = tied.map(|site| site.path.as_str()).collect();
        for (path, mine) in self.adapted() {
            known.insert(path);
            let Some(theirs) = planned.get(path) else {
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
        for path in planned.keys().filter(|path| !known.contains(path.as_str())) {
            problems.push(format!(
                "`{path}` is a target of the file, but has no adapter in the model"
            ));
        }
        let planned_saved = self.planned_saved(config);
        self.compare_saved(&planned_saved, &mut problems);
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
            if trained != wanted && holder(&planned_saved, &key).is_none() {
                problems.push(match trained {
                    true => format!("the model trains `{key}`, the file's `bias` does not say so"),
                    false => format!("the file's `bias` trains `{key}`, the model does not"),
                });
            }
        }
        Ok(problems)
    }

    fn compare_saved(&self, planned: &[String], problems: &mut Vec<String>) {
        for site in self
            .sites
            .iter()
            .filter(|site| site.base_params().next().is_some() && !site.has_tied_copy)
        {
            let path = &site.path;
            // A module trained as a whole and all its layers trained one by one are the same.
            match (self.is_saved(path), holder(planned, path).is_some()) {
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
