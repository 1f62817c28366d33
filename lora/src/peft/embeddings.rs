//! Embeddings and heads that a file holds beside the matrices: PEFT's `save_embedding_layers`.
//!
//! Trainers write them after adding tokens, and whenever the embedding is a target. Mostly they are
//! the base's own, or those with further rows.

use super::describe::{Description, Site};
use super::keys;
use super::load::Files;
use super::weights::check_dtype;
use crate::adapter::{Access, Form, update};
use crate::config::Kind;
use crate::config::matching::{is_or_ends_with, is_or_starts_with};
use crate::path::join;
use crate::traits::try_each_layer_mut;
use crate::{Error, LoraModule, Part, Result, Settings};
use candle_core::{Tensor, TensorId};
use indexmap::IndexMap;
use std::collections::HashMap;

/// A layer whose vocabulary grew, with its weight and bias for the larger one.
pub(super) struct Growth {
    pub path: String,
    weight: Tensor,
    bias: Option<Tensor>,
}

/// A layer of the model with a row for each token, and its weight in the file.
struct Layer<'a> {
    site: &'a Site,
    /// The plain key of the weight.
    key: String,
    /// The identity of the model's weight: a head may share it.
    id: TensorId,
    /// The weight as it is for the file's vocabulary.
    weight: Tensor,
    bias: Option<Tensor>,
    is_grown: bool,
}

/// Compares the file's embeddings and heads with the model's. Those that are the same are left out.
/// Others count as trained in full, or give the model further rows, if the options say so.
pub(super) fn fit(
    files: &mut Files,
    model: &Description,
    problems: &mut Vec<String>,
) -> Result<Vec<Growth>> {
    drop_shared_rows(files, model, problems)?;
    let layers = layers(files, model);
    if layers.is_empty() {
        return Ok(Vec::new());
    }
    let mut fitting = Fitting {
        saved: model.planned_saved(&files.config),
        planned: model.planned(&files.config)?,
        files,
        model,
        grown: HashMap::new(),
        growth: Vec::new(),
        trained: IndexMap::new(),
    };
    for layer in layers {
        if let Err(problem) = fitting.layer(layer)? {
            problems.push(problem);
        }
    }
    fitting.finish()
}

/// The comparison on its way.
struct Fitting<'a> {
    files: &'a mut Files,
    model: &'a Description,
    saved: Vec<String>,
    planned: IndexMap<String, Settings>,
    /// Larger weights by the model's weight: a head that shares the weight gets the same tensor.
    grown: HashMap<TensorId, Tensor>,
    growth: Vec<Growth>,
    /// Embeddings that the file's training changed, by the model's weight.
    trained: IndexMap<TensorId, Trained>,
}

impl Fitting<'_> {
    fn layer(&mut self, mut layer: Layer<'_>) -> Result<Result<(), String>> {
        let path = &layer.site.path;
        if let Some(weight) = self.grown.get(&layer.id) {
            // A head gets the very tensor that its embedding got: they go on sharing it.
            (layer.weight, layer.is_grown) = (weight.clone(), true);
        }
        if let Err(problem) = layer.grow(self.files)? {
            return Ok(Err(problem));
        }
        if layer.is_grown {
            self.grown.insert(layer.id, layer.weight.clone());
            self.growth.push(Growth {
                path: path.clone(),
                weight: layer.weight.clone(),
                bias: layer.bias.clone(),
            });
        }
        if self.is_saved(&layer) {
            return Ok(Ok(()));
        }
        let key = &self.files.weights.tensors.keys()[&layer.key];
        if self.files.weights.equals(key, &layer.weight) {
            self.files.weights.tensors.remove(&layer.key);
            return Ok(Ok(()));
        }
        if !self.files.dir.trained_embeddings {
            return Ok(Err(format!(
                "`{}` differs from the model's own weight: the adapter's training changed it, or \
                 the adapter is for another model. To take the file's, as a module trained in \
                 full, say AdapterDir::new(dir).trained_embeddings(true)",
                layer.key
            )));
        }
        let plain = match layer.train(self.files, self.planned.get(path).copied())? {
            Ok(plain) => plain,
            Err(problem) => return Ok(Err(problem)),
        };
        // PEFT loads a weight that embedding and head share once for both.
        match self.trained.get(&layer.id) {
            Some(embedding) => {
                if embedding.plain.is_none() && same(self.files, &embedding.path, path)? {
                    self.files.config.ensure_weight_tying = true;
                    self.files.config.modules_to_save.pop();
                }
            }
            None => {
                let path = path.clone();
                self.trained.insert(layer.id, Trained { path, plain });
            }
        }
        Ok(Ok(()))
    }

    /// True if the settings say that the layer is trained in full, or that it follows an embedding
    /// which is.
    fn is_saved(&self, layer: &Layer<'_>) -> bool {
        let is_saved = |path: &str| {
            let mut saved = self.saved.iter();
            saved.any(|module| is_or_starts_with(path, module))
        };
        let mut shared = self
            .model
            .sites
            .iter()
            .filter(|site| id(site) == Some(layer.id));
        let ties = self.files.config.ensure_weight_tying;
        is_saved(&layer.site.path) || (ties && shared.any(|site| is_saved(&site.path)))
    }

    /// Everything that the model has to be given.
    fn finish(mut self) -> Result<Vec<Growth>> {
        for (id, embedding) in std::mem::take(&mut self.trained) {
            share(self.files, self.model, id, embedding)?;
        }
        // Layers that share a grown weight, without a weight of their own in the file.
        for site in &self.model.sites {
            let Some(own) = site.own.first() else {
                continue;
            };
            if self.growth.iter().any(|growth| growth.path == site.path) {
                continue;
            }
            if let Some(weight) = self.grown.get(&own.param.tensor.id()) {
                self.growth.push(Growth {
                    path: site.path.clone(),
                    weight: weight.clone(),
                    bias: None,
                });
            } else if !self.growth.is_empty() && keys::is_head(&site.path) {
                self.files.dir.tell(&format!(
                    "the vocabulary grew, but `{}` keeps its {} rows, as the file holds no others",
                    site.path,
                    own.param.tensor.dims().first().unwrap_or(&0)
                ));
            }
        }
        Ok(self.growth)
    }
}

/// PEFT writes the trained rows of an embedding once more for a head that shares its weight. Here
/// the head follows the embedding, so that the file's two must be the same.
fn drop_shared_rows(
    files: &mut Files,
    model: &Description,
    problems: &mut Vec<String>,
) -> Result<()> {
    let id = |site: &Site| Some(site.own.first()?.param.tensor.id());
    let embeddings = model
        .sites
        .iter()
        .filter(|site| site.kind == Kind::Embedding);
    for embedding in embeddings {
        let key = keys::part(&embedding.path, Part::Tokens, true);
        let Some(rows) = files.weights.tensors.get(&key)? else {
            continue;
        };
        let heads = model.sites.iter().filter(|site| id(site) == id(embedding));
        for head in heads.filter(|head| head.path != embedding.path) {
            let of_head = keys::part(&head.path, Part::Tokens, false);
            let Some(copy) = files.weights.tensors.get(&of_head)? else {
                continue;
            };
            match super::rounding::same_values(&rows, &copy)? {
                true => files.weights.tensors.remove(&of_head),
                false => problems.push(format!(
                    "`{of_head}` differs from `{key}`, but both layers share one weight"
                )),
            }
        }
    }
    Ok(())
}

/// The identity of a layer's weight.
fn id(site: &Site) -> Option<TensorId> {
    Some(site.own.first()?.param.tensor.id())
}

/// Whether the file has the same weight for both layers.
fn same(files: &Files, one: &str, other: &str) -> Result<bool> {
    let tensors = &files.weights.tensors;
    let weights = (
        tensors.get(&join(one, "weight"))?,
        tensors.get(&join(other, "weight"))?,
    );
    match weights {
        (Some(one), Some(other)) => super::rounding::same_values(&one, &other),
        _ => Ok(false),
    }
}

/// An embedding that the file's training changed.
struct Trained {
    path: String,
    /// Its weight without the update of low rank, if it has one.
    plain: Option<Tensor>,
}

/// Gives the heads that share the weight of a trained embedding, and that the file has no weight
/// for, what PEFT gives them: the embedding's weight, without its update of low rank.
fn share(files: &mut Files, model: &Description, id: TensorId, embedding: Trained) -> Result<()> {
    let sites = model.sites.iter().filter(|site| self::id(site) == Some(id));
    for head in sites.filter(|site| site.path != embedding.path) {
        let key = join(&head.path, "weight");
        let tensors = &mut files.weights.tensors;
        if tensors.info(&key).is_some() {
            continue;
        }
        match &embedding.plain {
            Some(plain) => {
                tensors.insert(&key, plain.clone())?;
                let path = files.config.naming.meant_or_same(&head.path);
                files.config.modules_to_save.push(path);
            }
            None => {
                if let Some(weight) = tensors.get(&join(&embedding.path, "weight"))? {
                    tensors.insert(&key, weight)?;
                    files.config.ensure_weight_tying = true;
                }
            }
        }
    }
    Ok(())
}

/// The embeddings and heads of the model that have a weight in the file; embeddings first.
fn layers<'a>(files: &Files, model: &'a Description) -> Vec<Layer<'a>> {
    let id = |site: &Site| Some(site.own.first()?.param.tensor.id());
    let embeddings = model
        .sites
        .iter()
        .filter(|site| site.kind == Kind::Embedding);
    let shared: Vec<_> = embeddings.clone().filter_map(id).collect();
    let heads = model.sites.iter().filter(|site| {
        let shares = id(site).is_some_and(|id| shared.contains(&id));
        site.kind != Kind::Embedding && site.adaptable && (shares || keys::is_head(&site.path))
    });
    let layers = embeddings.chain(heads).filter_map(|site| {
        let keys = keys::of_weight(&site.path);
        let tensors = &files.weights.tensors;
        let is_there = |key: &String| {
            let info = tensors.info(key);
            info.is_some_and(|info| check_dtype(info).is_ok())
        };
        let key = keys.into_iter().find(is_there)?;
        let own = |name: &str| site.own.iter().find(|own| own.param.name == name);
        Some(Layer {
            site,
            key,
            id: id(site)?,
            weight: own("weight")?.param.tensor.clone(),
            bias: own("bias").map(|own| own.param.tensor.clone()),
            is_grown: false,
        })
    });
    layers.collect()
}

impl Layer<'_> {
    /// Adds the file's further rows to the weight, and the further values to the bias.
    fn grow(&mut self, files: &mut Files) -> Result<Result<(), String>> {
        let tensors = &files.weights.tensors;
        let Some(info) = tensors.info(&self.key) else {
            return Ok(Ok(()));
        };
        let (&[rows, columns], &[more, wide]) = (self.weight.dims(), info.shape.as_slice()) else {
            return Ok(Ok(()));
        };
        if columns != wide || more <= rows {
            return Ok(Ok(()));
        }
        if !files.dir.grow_vocabulary {
            return Ok(Err(format!(
                "`{}` has {more} rows, the model's {rows}: the vocabulary grew in training. \
                 AdapterDir::new(dir).grow_vocabulary(true) gives the model the further rows",
                self.key
            )));
        }
        self.weight = longer(&self.weight, &tensors.tensor(&tensors.keys()[&self.key])?)?;
        self.is_grown = true;
        if let Some(bias) = &self.bias {
            let names = [
                join(&self.site.path, "bias"),
                keys::of_base(&self.site.path, "bias"),
            ];
            let name = names.iter().find(|name| tensors.info(name).is_some());
            let theirs = name.map(|name| tensors.get(name)).transpose()?.flatten();
            match theirs.filter(|theirs| theirs.dims() == [more]) {
                Some(theirs) => {
                    let longer = longer(bias, &theirs)?;
                    if let Some(name) = name
                        && files.weights.equals(&tensors.keys()[name], &longer)
                    {
                        let name = name.clone();
                        files.weights.tensors.remove(&name);
                    }
                    self.bias = Some(longer);
                }
                None => {
                    return Ok(Err(format!(
                        "`{}` has {more} rows, but the file holds no bias of that length for it",
                        self.key
                    )));
                }
            }
        }
        Ok(Ok(()))
    }

    /// Makes the file's weight, with its update of low rank and its trained rows, that of a module
    /// trained in full. Returns the weight without the update, if there is one.
    fn train(
        &self,
        files: &mut Files,
        settings: Option<Settings>,
    ) -> Result<Result<Option<Tensor>, String>> {
        let path = &self.site.path;
        let tensors = &mut files.weights.tensors;
        let Some(mut weight) = tensors.get(&self.key)? else {
            return Ok(Ok(None));
        };
        let wide = self.weight.dtype();
        let mut plain = None;
        weight = weight.to_dtype(wide)?;
        let of_lookup = self.site.kind == Kind::Embedding;
        let name = |part| keys::part(path, part, of_lookup);
        if let Some(settings) = settings {
            if [Part::Magnitude, Part::Bias]
                .iter()
                .any(|part| tensors.info(&name(*part)).is_some())
            {
                return Ok(Err(format!(
                    "`{}` differs from the model's own weight and has DoRA or a bias on B: merge \
                     the adapter with PEFT's merge_and_unload",
                    self.key
                )));
            }
            let (a, b) = (tensors.get(&name(Part::A))?, tensors.get(&name(Part::B))?);
            let form = self.site.form.unwrap_or(Form::Linear);
            if let (Some(a), Some(b)) = (a, b) {
                let (a, b) = (a.to_dtype(wide)?, b.to_dtype(wide)?);
                let update = form.delta(&a, &b, settings.scaling);
                match update.and_then(|update| weight.add(&update)) {
                    Ok(sum) => plain = Some(std::mem::replace(&mut weight, sum)),
                    Err(_) => {
                        return Ok(Err(format!(
                            "A and B of `{path}` do not fit `{}`",
                            self.key
                        )));
                    }
                }
                tensors.remove(&name(Part::A));
                tensors.remove(&name(Part::B));
            }
        }
        let back = files.config.naming.meant_or_same(path);
        let indices = &mut files.config.trainable_token_indices;
        if let Some(rows) = tensors.get(&name(Part::Tokens))? {
            let named = indices
                .keys()
                .find(|name| is_or_ends_with(&back, name))
                .cloned();
            let ids = named.as_ref().and_then(|name| indices.get(name));
            let fits = ids.filter(|ids| {
                let count = weight.dim(0).unwrap_or(0);
                rows.dims() == [ids.len(), weight.dim(1).unwrap_or(0)]
                    && ids.iter().all(|id| (*id as usize) < count)
            });
            let Some(ids) = fits else {
                let problem = format!("the trained rows of `{path}` do not fit `{}`", self.key);
                return Ok(Err(problem));
            };
            weight = update::replace_rows(&weight, ids, &rows.to_dtype(wide)?)?;
            named.map(|name| indices.shift_remove(&name));
            tensors.remove(&name(Part::Tokens));
        }
        tensors.remove(&self.key);
        tensors.insert(&join(path, "weight"), weight)?;
        files.config.modules_to_save.push(back);
        Ok(Ok(plain))
    }
}

/// The model's values, and behind them the file's further ones.
fn longer(mine: &Tensor, file: &Tensor) -> Result<Tensor> {
    let (count, more) = (mine.dim(0)?, file.dim(0)?);
    let further = file.narrow(0, count, more - count)?;
    let further = further.to_dtype(mine.dtype())?.to_device(mine.device())?;
    Ok(Tensor::cat(&[&mine.detach(), &further], 0)?)
}

/// Gives the model its larger embeddings and heads.
pub(super) fn grow<M: LoraModule>(model: &mut M, growth: Vec<Growth>) -> Result<()> {
    if growth.is_empty() {
        return Ok(());
    }
    let by_path: HashMap<&str, &Growth> = growth.iter().map(|g| (g.path.as_str(), g)).collect();
    try_each_layer_mut(model, |path, layer| {
        let Some(growth) = by_path.get(path) else {
            return Ok(());
        };
        let Some(adapted) = layer.adapted_mut() else {
            return Ok(());
        };
        let adapters = adapted.adapters();
        let is_free = adapters.iter().next().is_none()
            && adapters.tokens.is_empty()
            && adapters.copies.adapters().next().is_none();
        if !is_free {
            return Err(Error::layer(
                path,
                "the vocabulary cannot grow, as other adapters are for the present one: load this \
                 adapter first",
            ));
        }
        let parts = adapted.parts_mut(Access::new());
        *parts.weight = growth.weight.clone();
        if let (Some(bias), Some(longer)) = (parts.bias, &growth.bias) {
            *bias = longer.clone();
        }
        Ok(())
    })
}
