//! Tensors that an adapter brings in full, and what it lacks.

use super::change::Start;
use super::modules::Keys;
use super::planner::Planner;
use crate::Result;
use crate::adapter::Part;
use crate::config::matching::{is_bias, is_or_ends_with, modules_above};
use crate::path::join;
use crate::peft::TokenIndices;
use crate::peft::keys::{self, is_embedding, without_wrappers};
use crate::peft::rounding::same_values;
use crate::peft::weights::check_dtype;
use candle_core::Tensor;
use safetensors::tensor::TensorInfo;
use std::collections::HashSet;

impl Planner<'_> {
    /// Plans a tensor of the adapter that has the name of a tensor of the base.
    pub fn plain(&mut self, name: &str, key: &str, sorted: &Keys) -> Result<()> {
        let bare = without_wrappers(name);
        let saved = self.saved_module(&bare);
        if let Some(module) = &saved {
            // With all embeddings, the file holds the copies beside the module's own key.
            let rest = bare[module.len()..].trim_start_matches('.');
            let own = rest.split_once('.').map(|(_, name)| join(module, name));
            let is_double = own.is_some_and(|own| sorted.plain.contains_key(&own));
            if keys::is_of_copy(rest) || (keys::is_within_copy(rest) && is_double) {
                return Ok(());
            }
            return self.replace(&bare, key, sorted, true);
        }
        // Older files name the bias of an adapted layer without PEFT's wrapper.
        let layer = bare.strip_suffix(".bias");
        let is_adapted = layer.is_some_and(|layer| sorted.modules.contains_key(layer));
        let is_adapted = is_adapted || keys::is_of_base(name);
        if is_bias(&bare) && self.config.bias.trains(is_adapted) {
            return self.replace(&bare, key, sorted, true);
        }
        if keys::path_of_base_weight(name).is_some() || is_of_vocabulary(&bare) {
            // An embedding's base weight comes with its adapter, and must be the base's own.
            return self.replace_if_new(&bare, key, sorted);
        }
        // Some tools write all of a model's state.
        if self.is_own(&self.locate(&bare), key)? {
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
    fn is_own(&self, name: &str, key: &str) -> Result<bool> {
        let infos = [self.adapter.tensors().get(key), self.base.info(name)];
        let is_float = |info: Option<&TensorInfo>| info.is_some_and(|i| check_dtype(i).is_ok());
        Ok(infos.into_iter().all(is_float) && self.is_value(name, &self.adapter.tensor(key)?)?)
    }

    /// Whether these are the values of the base's tensor, but for rounding: of the base as it is, or as
    /// it was before other adapters.
    fn is_value(&self, name: &str, own: &Tensor) -> Result<bool> {
        let was = self.earlier.contains_key(name) && self.original.contains(name);
        Ok(same_values(&self.base.tensor(name)?, own)?
            || (was && same_values(&self.original.tensor(name)?, own)?))
    }

    /// Adds a problem for each tensor that would take the place of other values than the base's: of
    /// those that an adapter before brought.
    pub fn find_overwritten(&mut self) -> Result<()> {
        let mut problems = Vec::new();
        for (name, change) in &self.changes {
            let Some(other) = self.earlier.get(name) else {
                continue;
            };
            let (now, was) = (self.base.tensor(name)?, self.original.contains(name));
            let was = was.then(|| self.original.tensor(name)).transpose()?;
            if let Start::File(key) = &change.start
                && !same_values(&now, &self.adapter.tensor(key)?)?
            {
                let module = name.rsplit_once('.').map_or(&**name, |(module, _)| module);
                problems.push(format!(
                    "`{module}` was trained in full, and {} changes `{name}`, too, to other values: \
                     only one of the two adapters can be merged",
                    other.by.display()
                ));
            }
            let Some((key, rows)) = &change.rows else {
                continue;
            };
            let own = self.adapter.tensor(key)?;
            for (place, &row) in rows.iter().enumerate() {
                let at = |tensor: &Tensor, row: usize| tensor.narrow(0, row, 1);
                let (now, own) = (at(&now, row as usize)?, at(&own, place)?);
                let is_as_before = match &was {
                    Some(was) if (row as usize) < was.dim(0)? => {
                        same_values(&now, &at(was, row as usize)?)?
                    }
                    _ => false,
                };
                if !is_as_before && !same_values(&now, &own)? {
                    problems.push(format!(
                        "row {row} of `{name}` was trained, and {} changes that row, too, to other \
                         values: only one of the two adapters can be merged",
                        other.by.display()
                    ));
                }
            }
        }
        self.problems.extend(problems);
        Ok(())
    }

    /// The module, trained in full, that holds a tensor. By PEFT's rule for `modules_to_save`: the
    /// module's path ends in the letters of an entry.
    fn saved_module(&self, name: &str) -> Option<String> {
        let entries = self.config.modules_to_save.as_ref()?;
        let mut modules = modules_above(name);
        let found = modules.find(|module| entries.iter().any(|entry| module.ends_with(entry)));
        found.map(String::from)
    }

    /// Plans that the adapter's tensor takes the place of the base's. `is_trained` if the module was
    /// trained in full. Where an option is missing, the tensor is planned all the same, so that one
    /// error tells all that is missing.
    fn replace(&mut self, bare: &str, key: &str, keys: &Keys, is_trained: bool) -> Result<()> {
        let name = self.locate(bare);
        if self.is_tied_head(&name) {
            return self.replace_head(key, keys, is_trained);
        }
        if let Some(tie) = &mut self.tie
            && tie.embedding == name
        {
            tie.is_trained |= is_trained;
        }
        if !self.base.contains(&name) && self.is_copy(key, keys)? {
            return Ok(());
        }
        self.ask_for_new(key, &name);
        self.put(&name, key);
        Ok(())
    }

    /// Adds a problem if only [`MergeOptions::new_tensors`](super::MergeOptions::new_tensors) lets a
    /// tensor of the file take this place.
    pub fn ask_for_new(&mut self, key: &str, name: &str) {
        let theirs = self.shape_of(key);
        let grown = |mine: &[usize]| {
            self.dir.grow_vocabulary && is_of_vocabulary(name) && has_more_rows(theirs, mine)
        };
        let problem = match self.base.shape(name) {
            _ if self.options.new_tensors => return,
            Some(mine) if grown(mine) => return,
            None => format!(
                "`{key}` has no `{name}` in the base to replace; MergeOptions::new_tensors adds it"
            ),
            Some(shape) if theirs != shape => format!(
                "`{key}` has shape {theirs:?}, the base's `{name}` {shape:?}; \
                 MergeOptions::new_tensors replaces it all the same"
            ),
            Some(_) => return,
        };
        self.problems.push(problem);
    }

    /// Plans that a tensor of the result is the adapter's.
    pub fn put(&mut self, name: &str, key: &str) {
        // Only floats may be converted. A tensor of another dtype, such as a counter, must have the
        // base's dtype.
        let dtype = |info: Option<&TensorInfo>| info.map(|info| info.dtype);
        let own = dtype(self.adapter.tensors().get(key));
        let same = self
            .base
            .info(name)
            .is_none_or(|info| own == Some(info.dtype));
        if !same && !self.are_floats(name, &[key]) {
            return;
        }
        let change = self.change(name);
        if change.is_full() {
            self.problems
                .push(format!("two tensors of the file would become `{name}`"));
        } else {
            change.start = Start::File(key.into());
        }
    }

    /// As [`replace`](Self::replace), but does nothing if the tensor is the base's own.
    fn replace_if_new(&mut self, bare: &str, key: &str, keys: &Keys) -> Result<()> {
        let name = self.locate(bare);
        if self.is_tied_head(&name) || !self.base.contains(&name) {
            return self.replace(bare, key, keys, false);
        }
        let mine = self.base.shape(&name).unwrap_or_default().to_vec();
        let theirs = self.shape_of(key).to_vec();
        let grows = has_more_rows(&theirs, &mine);
        let fits = (mine == theirs || grows) && self.are_floats(&name, &[key]);
        let mut is_same = false;
        if fits {
            let mut own = self.adapter.tensor(key)?;
            if grows {
                own = own.narrow(0, 0, mine[0])?;
            }
            is_same = self.is_value(&name, &own)?;
            if is_same && !grows {
                return Ok(());
            }
        }
        let accepted = fits && (is_same || self.dir.trained_embeddings);
        let accepted = accepted && (!grows || self.dir.grow_vocabulary);
        if !accepted && !self.options.new_tensors {
            self.problems.push(match grows && is_same {
                true => format!(
                    "`{key}` has {} rows, the base's `{name}` {}: the vocabulary grew in training; \
                     AdapterDir::grow_vocabulary or MergeOptions::new_tensors takes the file's",
                    theirs[0], mine[0]
                ),
                false => format!(
                    "`{key}` differs from the base's `{name}`: the adapter was saved with another \
                     base, or with changed embeddings; AdapterDir::trained_embeddings or \
                     MergeOptions::new_tensors replaces it"
                ),
            });
        }
        self.put(&name, key);
        Ok(())
    }

    /// As [`is_own`](Self::is_own). A tensor of the base's shape that is no float is a problem.
    pub fn is_base(&mut self, key: &str, name: &str) -> Result<bool> {
        let shape = self.shape_of(key).to_vec();
        let fits = self.base.shape(name) == Some(&shape) && self.are_floats(name, &[key]);
        Ok(fits && self.is_own(name, key)?)
    }

    /// Whether an embedding of the file has the same values and a place in the base: both modules
    /// then share that weight.
    pub fn is_copy(&self, key: &str, keys: &Keys) -> Result<bool> {
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
                if !self.changes.contains_key(name) && !self.is_tied_head(name) {
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
pub(super) fn equal(a: &Tensor, b: &Tensor) -> Result<bool> {
    Ok(a.dtype() == b.dtype() && same_values(a, b)?)
}
