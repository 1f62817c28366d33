//! What two checkpoints differ in beside the weights of layers: modules and biases that an adapter of
//! PEFT's can hold in full.

use crate::config::matching::modules_above;
use crate::file::Checkpoint;
use crate::peft::keys;
use crate::{Result, TrainBias};
use candle_core::Tensor;
use std::collections::BTreeSet;

/// The tensors of a tuned checkpoint that an adapter holds in full.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Modules with all of their tensors.
    pub modules: BTreeSet<String>,
    /// Layers with an update of low rank whose bias differs, too.
    pub biased: BTreeSet<String>,
}

/// The module that a tensor belongs to; a tensor of the model itself stands for itself.
pub(super) fn module_of(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(module, _)| module)
}

impl Rest {
    /// Adds a tensor that differs. False if it has no place: if it belongs to a layer with an update of
    /// low rank, and is no bias.
    pub fn add(&mut self, name: &str, is_target: impl Fn(&str) -> bool) -> bool {
        let module = module_of(name);
        if !is_target(module) {
            self.modules.insert(module.into());
            return true;
        }
        let is_bias = name.strip_prefix(module) == Some(".bias");
        if is_bias {
            self.biased.insert(module.into());
        }
        is_bias
    }

    /// Adds the modules that PEFT would take for the same entries: all whose paths end in the letters
    /// of one. They are equal in both checkpoints, or among the modules already. Returns the problems of
    /// those that have an update of low rank.
    pub fn complete(
        &mut self,
        tuned: &Checkpoint,
        is_target: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let all: BTreeSet<&str> = tuned.names().map(module_of).collect();
        let mut problems = Vec::new();
        let mut more = Vec::new();
        for module in all {
            let inside = modules_above(module).any(|above| self.modules.contains(above));
            let mut entries = self.modules.iter();
            let entry = entries.find(|entry| module.ends_with(entry.as_str()));
            let Some(entry) = entry.filter(|_| !inside && !self.modules.contains(module)) else {
                continue;
            };
            match is_target(module) {
                true => problems.push(format!(
                    "`{entry}` differs in full, and to PEFT that name also means `{module}`, which gets \
                     an update of low rank: leave one of them out"
                )),
                false => more.push(module.to_string()),
            }
        }
        self.modules.extend(more);
        problems
    }

    /// How PEFT's `bias` says which biases are there.
    pub fn bias(&self) -> TrainBias {
        match self.biased.is_empty() {
            true => TrainBias::None,
            false => TrainBias::LoraOnly,
        }
    }

    /// The tensors, by plain key: those of the modules, and the biases of all of these layers if one
    /// differs.
    pub fn tensors<'a>(
        &self,
        tuned: &Checkpoint,
        layers: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::new();
        for name in tuned.names() {
            let held = self.modules.contains(module_of(name));
            if held || modules_above(name).any(|above| self.modules.contains(above)) {
                tensors.push((name.to_string(), tuned.tensor(name)?));
            }
        }
        if !self.biased.is_empty() {
            for layer in layers {
                let name = format!("{layer}.bias");
                if tuned.contains(&name) {
                    tensors.push((keys::of_base(layer, "bias"), tuned.tensor(&name)?));
                }
            }
        }
        Ok(tensors)
    }
}
