//! Tensors that an adapter brings in full, what it lacks, and heads that share an embedding's
//! weight.

use super::modules::Keys;
use super::plan::Planner;
use crate::Result;
use crate::adapter::Part;
use crate::config::matching::{is_bias, is_or_ends_with, modules_above};
use crate::path::join;
use crate::peft::TokenIndices;
use crate::peft::keys::{self, is_embedding, without_wrappers};
use crate::peft::rounding::same_values;
use candle_core::{DType, Tensor};
use safetensors::tensor::Dtype;
use serde_json::Value;
use std::collections::HashSet;

impl Planner<'_> {
    /// Plans a tensor of the adapter that has the name of a tensor of the base.
    pub fn plain(&mut self, name: &str, key: &str, sorted: &Keys) -> Result<()> {
        let bare = without_wrappers(name);
        let saved = self.saved_module(&bare);
        if let Some(module) = &saved {
            if keys::is_of_copy(bare[module.len()..].trim_start_matches('.')) {
                return Ok(());
            }
            return self.replace(&bare, key, sorted);
        }
        // Older files name the bias of an adapted layer without PEFT's wrapper.
        let layer = bare.strip_suffix(".bias");
        let is_adapted = layer.is_some_and(|layer| sorted.modules.contains_key(layer));
        let is_adapted = is_adapted || keys::is_of_base(name);
        if is_bias(&bare) && self.config.bias.trains(is_adapted) {
            return self.replace(&bare, key, sorted);
        }
        if keys::path_of_base_weight(name).is_some() || is_of_vocabulary(&bare) {
            // An embedding's base weight comes with its adapter, and must be the base's own.
            return self.replace_if_new(&bare, key, sorted);
        }
        // Some tools write all of a model's state.
        if self.is_own(&bare, key)? {
            return Ok(());
        }
        self.problems.push(match is_bias(&bare) {
            true => format!("`{key}` is a bias that the setting `bias` does not train"),
            false => format!(
                "`{key}` is unexpected: it is no part of an adapter, and not in `modules_to_save`"
            ),
        });
        Ok(())
    }

    /// Whether the tensor is the base's own, but for rounding.
    fn is_own(&self, bare: &str, key: &str) -> Result<bool> {
        let name = self.locate(bare);
        let is_float = |dtype: Option<Dtype>| {
            let floats = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16];
            dtype.is_some_and(|dtype| floats.contains(&dtype))
        };
        let own = self.adapter.tensors().get(key).map(|info| info.dtype);
        let base = self.base.info(&name).map(|info| info.dtype);
        Ok(is_float(own)
            && is_float(base)
            && same_values(&self.base.tensor(&name)?, &self.adapter.tensor(key)?)?)
    }

    /// The module, trained in full, that holds a tensor. By PEFT's rule for `modules_to_save`: the
    /// module's path ends in the letters of an entry.
    fn saved_module(&self, name: &str) -> Option<String> {
        let entries = self.config.modules_to_save.as_ref()?;
        let mut modules = modules_above(name);
        let found = modules.find(|module| entries.iter().any(|entry| module.ends_with(entry)));
        found.map(String::from)
    }

    /// Plans that the adapter's tensor takes the place of the base's.
    fn replace(&mut self, bare: &str, key: &str, keys: &Keys) -> Result<()> {
        let mine = self.base.shape(&self.locate(bare)).unwrap_or_default();
        let grown = self.dir.grow_vocabulary
            && is_of_vocabulary(bare)
            && has_more_rows(self.shape_of(key), mine);
        self.put(bare, key, keys, grown || self.options.new_tensors)
    }

    /// As [`replace`](Self::replace). `any` accepts a tensor of another shape.
    fn put(&mut self, bare: &str, key: &str, keys: &Keys, any: bool) -> Result<()> {
        let name = self.locate(bare);
        let Some(info) = self.base.info(&name) else {
            if self.is_copy(key, keys)? {
                return Ok(());
            }
            if self.options.new_tensors {
                if self.change(&name).replace.replace(key.into()).is_some() {
                    self.problems
                        .push(format!("two tensors of the file would become `{name}`"));
                }
            } else {
                self.problems.push(format!(
                    "`{key}` has no `{name}` in the base to replace; MergeOptions::new_tensors adds \
                     it"
                ));
            }
            return Ok(());
        };
        let theirs = self.shape_of(key).to_vec();
        if theirs != info.shape && !any {
            self.problems.push(format!(
                "`{key}` has shape {theirs:?}, the base's `{name}` {:?}; MergeOptions::new_tensors \
                 replaces it all the same",
                info.shape
            ));
            return Ok(());
        }
        // Only floats may be converted. A tensor of another dtype, such as a counter, must have the
        // base's dtype.
        let same = self.adapter.tensors().get(key).map(|i| i.dtype) == Some(info.dtype);
        if (same || self.are_floats(&name, &[key]))
            && self.change(&name).replace.replace(key.into()).is_some()
        {
            self.problems
                .push(format!("two tensors of the file replace `{name}`"));
        }
        Ok(())
    }

    /// As [`replace`](Self::replace), but does nothing if the tensor is the base's own.
    fn replace_if_new(&mut self, bare: &str, key: &str, keys: &Keys) -> Result<()> {
        let name = self.locate(bare);
        let Some(info) = self.base.info(&name) else {
            return self.replace(bare, key, keys);
        };
        let (mine, theirs) = (info.shape.clone(), self.shape_of(key).to_vec());
        let grows = has_more_rows(&theirs, &mine);
        let mut is_same = false;
        if (mine == theirs || grows) && self.are_floats(&name, &[key]) {
            let mut own = self.adapter.tensor(key)?;
            if grows {
                own = own.narrow(0, 0, mine[0])?;
            }
            is_same = same_values(&self.base.tensor(&name)?, &own)?;
            if is_same && !grows {
                return Ok(());
            }
            let accepted = is_same || self.dir.trained_embeddings;
            if accepted && (!grows || self.dir.grow_vocabulary) {
                return self.put(bare, key, keys, true);
            }
        }
        if self.options.new_tensors {
            return self.put(bare, key, keys, true);
        }
        self.problems.push(match grows && is_same {
            true => format!(
                "`{key}` has {} rows, the base's `{name}` {}: the vocabulary grew in training; \
                 AdapterDir::grow_vocabulary or MergeOptions::new_tensors takes the file's",
                theirs[0], mine[0]
            ),
            false => format!(
                "`{key}` differs from the base's `{name}`: the adapter was saved with another base, \
                 or with changed embeddings; AdapterDir::trained_embeddings or \
                 MergeOptions::new_tensors replaces it"
            ),
        });
        Ok(())
    }

    /// Whether an embedding of the file has the same values and a place in the base: both modules
    /// then share that weight.
    fn is_copy(&self, key: &str, keys: &Keys) -> Result<bool> {
        for (name, other) in &keys.full_embeddings {
            let place = self.locate(&without_wrappers(name));
            if other != key
                && self.shape_of(other) == self.shape_of(key)
                && self.base.contains(&place)
                && equal(&self.adapter.tensor(other)?, &self.adapter.tensor(key)?)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether these trained rows are an embedding's once more: those of a head that shares its
    /// weight, and has none of its own in the base.
    pub fn is_copy_of_rows(&self, key: &str, keys: &Keys) -> Result<bool> {
        let rows = keys.modules.iter();
        let rows = rows.filter_map(|(path, module)| Some((path, module.get(Part::Tokens)?)));
        for (path, other) in rows
            .filter(|(path, _)| keys::is_embedding_path(path))
            .take(16)
        {
            let has_place = self.base.contains(&join(&self.locate(path), "weight"));
            if has_place
                && other != key
                && self.shape_of(other) == self.shape_of(key)
                && equal(&self.adapter.tensor(other)?, &self.adapter.tensor(key)?)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a head's matrices are those of an adapted embedding, transposed: the head's weight
    /// then is the embedding's, which gets the update once.
    pub fn is_shared(&self, a: &str, b: &str, keys: &Keys) -> Result<bool> {
        let turned = |of: &str| -> Vec<usize> {
            let shape = self.shape_of(of).iter();
            shape.rev().copied().collect()
        };
        if self.shape_of(a).contains(&0) {
            return Ok(false);
        }
        for (of_a, of_b) in &keys.embeddings {
            if turned(of_b) == self.shape_of(a) && turned(of_a) == self.shape_of(b) {
                let same = |x: &str, y: &str| -> Result<bool> {
                    equal(&self.adapter.tensor(x)?, &self.adapter.tensor(y)?.t()?)
                };
                if same(a, of_b)? && same(b, of_a)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Adds a problem for everything that the configuration names and the adapter lacks.
    pub fn find_missing(&mut self, keys: &Keys) -> Result<()> {
        // With other names, nothing tells which tensors of the base the configuration means.
        if !self.naming.is_same() {
            return Ok(());
        }
        let modules = keys.modules.keys();
        let adapted: HashSet<String> = modules.map(|path| without_wrappers(path)).collect();
        let plain = keys.plain.keys();
        let plain: HashSet<String> = plain.map(|name| without_wrappers(name)).collect();
        self.find_missing_parts(keys, &adapted);
        let names: Vec<&str> = self.base.names().collect();
        for name in names {
            if self.saved_module(name).is_some() {
                if !self.changes.contains_key(name) {
                    self.problems.push(format!(
                        "`{name}` is in `modules_to_save`, but not in the adapter"
                    ));
                }
                continue;
            }
            if let Some(path) = name.strip_suffix(".bias") {
                let wanted = self.config.bias.trains(adapted.contains(path));
                if wanted && !plain.contains(name) {
                    self.problems.push(format!(
                        "`bias` says that `{name}` is trained, but the adapter does not hold it"
                    ));
                }
            }
            let Some(path) = name.strip_suffix(".weight") else {
                continue;
            };
            let matrix = self.base.shape(name).is_some_and(|shape| shape.len() > 1);
            if !matrix || self.lora.target_modules.is_none() {
                continue;
            }
            // Files do not tell a layer's kind: `all-linear` matches no layer here.
            let targeted = self.selection.choose(path, None, None)?.target.is_some();
            if targeted && !adapted.contains(path) {
                self.problems.push(format!(
                    "`{path}` is a target of the configuration, but the adapter has nothing for it"
                ));
            }
        }
        Ok(())
    }

    /// Adds a problem for rows and bare parameters that the configuration names and the adapter
    /// lacks.
    fn find_missing_parts(&mut self, keys: &Keys, adapted: &HashSet<String>) {
        let with_rows = keys.modules.iter();
        let with_rows = with_rows.filter(|(_, module)| module.has(Part::Tokens));
        let with_rows: Vec<&String> = with_rows.map(|(path, _)| path).collect();
        for module in self.lora.trainable_token_indices.keys() {
            let found = match self.config.trainable_token_indices {
                // The input embedding, whatever its name.
                Some(TokenIndices::Input(_)) => !with_rows.is_empty(),
                _ => with_rows.iter().any(|path| is_or_ends_with(path, module)),
            };
            if !found {
                self.problems.push(format!(
                    "`trainable_token_indices` names `{module}`, but the adapter has no rows for it"
                ));
            }
        }
        for parameter in &self.lora.target_parameters {
            let module = parameter.rsplit_once('.').map_or("", |(module, _)| module);
            let mut paths = adapted.iter();
            if !module.is_empty() && !paths.any(|path| is_or_ends_with(path, module)) {
                self.problems.push(format!(
                    "`target_parameters` names `{parameter}`, but the adapter has nothing for it"
                ));
            }
        }
    }

    /// Gives a head without a weight of its own a copy of the embedding's, if the options say so.
    pub fn untie(&mut self, head: &str, a: &str, b: &str) -> Result<Option<String>> {
        if !self.options.untie || !self.is_tied()? {
            return Ok(None);
        }
        let (&[_, input], &[out, _]) = (self.shape_of(a), self.shape_of(b)) else {
            return Ok(None);
        };
        let names = self.base.names().filter(|name| is_embedding(name));
        let mut fitting = names.filter(|name| self.base.shape(name) == Some(&[out, input]));
        let (Some(embedding), None) = (fitting.next().map(str::to_string), fitting.next()) else {
            return Ok(None);
        };
        self.change(head).copy_of = Some(embedding);
        Ok(Some(head.into()))
    }

    /// Refuses to change an embedding whose weight a head shares, or gives the head a weight of its
    /// own: in training, the head computed with the unchanged weight.
    pub fn check_tying(&mut self) -> Result<()> {
        if self.config.ensure_weight_tying || self.options.keep_tied || !self.is_tied()? {
            return Ok(());
        }
        let head = self.locate("lm_head.weight");
        let own = self.changes.get(&head);
        if own.is_some_and(|head| head.replace.is_some()) {
            return Ok(());
        }
        let changes = self.changes.iter();
        let changed = changes.filter(|(name, change)| {
            is_embedding(name) && (change.low_rank.is_some() || change.replace.is_some())
        });
        let changed: Vec<String> = changed.map(|(name, _)| name.clone()).collect();
        for name in changed {
            if self.options.untie && self.base.contains(&name) {
                let mut copies = self.changes.values();
                if !copies.any(|change| change.copy_of.as_deref() == Some(&name)) {
                    self.change(&head).copy_of = Some(name);
                }
                continue;
            }
            self.problems.push(format!(
                "`{name}` is also the head's weight, for which the adapter was not trained: \
                 MergeOptions::untie gives the head one of its own, MergeOptions::keep_tied changes \
                 both, as PEFT does"
            ));
        }
        // In training, trained rows acted on the head too: its copy gets the same rows.
        let rows = |name: &String| self.changes.get(name)?.rows.clone();
        let copies = self.changes.iter().filter_map(|(name, change)| {
            let rows = rows(change.copy_of.as_ref()?)?;
            Some((name.clone(), rows))
        });
        for (name, rows) in copies.collect::<Vec<_>>() {
            // The copy is the base's embedding, which may have fewer rows than the adapter's.
            let source = self
                .changes
                .get(&name)
                .and_then(|change| change.copy_of.clone());
            let count = source.and_then(|source| self.base.shape(&source)?.first().copied());
            if let Some(row) = rows
                .1
                .iter()
                .find(|row| **row as usize >= count.unwrap_or(0))
            {
                self.problems.push(format!(
                    "`{name}` is a copy of the base's embedding, which has no row {row} to be trained"
                ));
                continue;
            }
            self.change(&name).rows = Some(rows);
        }
        Ok(())
    }

    /// Whether the model's head has the embedding's weight: its `config.json` says so, or it is a
    /// language model without a head in the checkpoint.
    fn is_tied(&self) -> Result<bool> {
        let head = |name: &str| {
            let heads = ["lm_head.weight", "embed_out.weight", "output.weight"];
            heads.iter().any(|head| is_or_ends_with(name, head))
        };
        if self.base.names().any(head) {
            return Ok(false);
        }
        let Some(config) = self.base.model_config()? else {
            return Ok(false);
        };
        let architectures = config.get("architectures").and_then(Value::as_array);
        let names = architectures
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let names: Vec<&str> = names.collect();
        let ends = [
            "LMHeadModel",
            "ForCausalLM",
            "ForConditionalGeneration",
            "ForMaskedLM",
            "ForPreTraining",
        ];
        let has_head = names
            .iter()
            .any(|name| ends.iter().any(|end| name.ends_with(end)));
        let says = config.get("tie_word_embeddings").and_then(Value::as_bool);
        // A bare encoder may carry the flag, which then speaks of a head that it does not have.
        Ok(says.unwrap_or(has_head) && (has_head || names.is_empty()))
    }
}

/// True for the weight or the bias of a layer that has a row for each token.
fn is_of_vocabulary(name: &str) -> bool {
    let layer = name.rsplit_once('.').map_or("", |(layer, _)| layer);
    is_embedding(name) || keys::is_head(layer)
}

/// True if the first shape is the second with more rows.
fn has_more_rows(theirs: &[usize], mine: &[usize]) -> bool {
    match (theirs, mine) {
        ([more, inner @ ..], [rows, same @ ..]) => more > rows && inner == same,
        _ => false,
    }
}

/// The same shape, dtype and values.
fn equal(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.dims() != b.dims() || a.dtype() != b.dtype() {
        return Ok(false);
    }
    let same = a.eq(b)?.flatten_all()?;
    Ok(same.elem_count() == 0 || same.min(0)?.to_dtype(DType::U32)?.to_scalar::<u32>()? == 1)
}
