//! [`Planner`]: a plan in the making. Each kind of thing that an adapter holds has a file of its own here.

use super::MergeOptions;
use super::change::{Change, outcome};
use super::modules::Keys;
use super::plan::Earlier;
use super::tying::Tie;
use crate::adapter::Part;
use crate::config::naming::Naming;
use crate::config::selection::Selection;
use crate::file::Checkpoint;
use crate::peft::keys::{without_wrappers, wrappers_behind};
use crate::peft::tensors::Tensors;
use crate::peft::weights::check_dtype;
use crate::peft::{AdapterConfig, AdapterDir};
use crate::{LoraConfig, Result};
use indexmap::IndexMap;

/// A plan in the making.
pub(super) struct Planner<'a> {
    pub base: &'a Checkpoint,
    /// The base without the adapters before, and what these changed.
    pub original: &'a Checkpoint,
    pub earlier: &'a IndexMap<String, Earlier>,
    pub adapter: &'a Tensors,
    pub config: &'a AdapterConfig,
    pub lora: &'a LoraConfig,
    pub options: &'a MergeOptions,
    pub selection: Selection<'a>,
    pub dir: &'a AdapterDir,
    pub naming: Naming,
    /// The settings mean the base's paths, not the adapter's.
    pub as_model: bool,
    /// The head that shares an embedding's weight in the base.
    pub tie: Option<Tie>,
    pub changes: IndexMap<String, Change>,
    pub problems: Vec<String>,
}

impl Planner<'_> {
    pub fn plan(&mut self, keys: &Keys) -> Result<()> {
        // Tensors that come in full go first: they may change a shape that an update must fit.
        for (name, key) in &keys.plain {
            self.plain(name, key, keys)?;
        }
        let mut wrapped = IndexMap::new();
        let mut square = Vec::new();
        for (path, module) in &keys.modules {
            let name = without_wrappers(path);
            if let Some(key) = module.get(Part::Tokens) {
                self.tokens(&name, key, keys)?;
            }
            let low_rank = module.has(Part::A) || module.has(Part::B);
            let of_layer = low_rank && !module.of_lookup;
            // The wrappers of one module decide together which parameter each is for.
            if of_layer && self.is_of_parameters(&name) {
                let (inner, depth) = wrappers_behind(path);
                let list: &mut Vec<_> = wrapped.entry(without_wrappers(inner)).or_default();
                list.push((depth, module));
                continue;
            }
            if of_layer {
                self.layer(path, module, keys, &mut square)?;
            } else if low_rank {
                self.embedding(&name, module)?;
            } else if !module.has(Part::Tokens) {
                for key in module.keys() {
                    let problem = format!("`{key}` stands without `lora_A` and `lora_B`");
                    self.problems.push(problem);
                }
            }
        }
        for (module, parts) in wrapped {
            self.parameters(&module, parts)?;
        }
        // Only now, as square weights follow all others, and as a missing tensor shows once
        // everything present is planned. Tying comes last: a head's own adapter may have untied it.
        self.lay_out(square);
        self.find_missing(keys)?;
        self.settle_tie();
        self.find_overwritten()
    }

    /// The path in the checkpoint of a path in the adapter.
    pub fn locate(&self, path: &str) -> String {
        self.naming.of(path)
    }

    /// The shape that a tensor has before its update: its own, or that of what replaces it.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let outcome = outcome(name, &self.changes, self.base, self.adapter);
        outcome.map(|(_, shape)| shape)
    }

    pub fn shape_of(&self, key: &str) -> &[usize] {
        let info = self.adapter.tensors().get(key);
        info.map(|info| info.shape.as_slice()).unwrap_or_default()
    }

    pub fn change(&mut self, name: &str) -> &mut Change {
        self.changes.entry(name.into()).or_default()
    }

    /// Whether the base's tensor and the adapter's are floats. Adds a problem for each that is not.
    pub fn are_floats(&mut self, name: &str, keys: &[&str]) -> bool {
        let mut all = true;
        let base = self.base.info(name).map(|info| (name, info));
        let adapter = keys.iter().filter_map(|key| {
            let info = self.adapter.tensors().get(*key)?;
            Some((*key, info))
        });
        for (name, info) in base.into_iter().chain(adapter) {
            if let Err(problem) = check_dtype(info) {
                self.problems
                    .push(format!("`{name}` {problem} to be merged"));
                all = false;
            }
        }
        all
    }
}
