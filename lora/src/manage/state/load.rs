//! Putting a model into a saved state.

use super::form::{AdapterForm, CopyForm, LayerForm, ModelForm, RowsForm};
use super::{fingerprint, of_adapter, of_copy, of_field, of_start};
use crate::adapter::{
    Access, AdaptedMut, Adapter, Parked, Tie, Tokens, check_name, copies, dora, quantised, updates,
};
use crate::file::TensorFile;
use crate::init::{self, Start, Target};
use crate::manage::tie::retie;
use crate::manage::{activate_layer, checked, refuse_merged};
use crate::traits::{each_layer, try_each_layer_mut};
use crate::{Adapted, Error, Init, Layer, LoraConfig, LoraModule, Part, Result, Settings, ops};
use candle_core::{Shape, Tensor, Var};
use std::collections::{BTreeSet, HashSet};

/// The model in the saved state, with variables of its own; `model` stays as it is. The keys that were
/// of use are added to `used`.
pub(crate) fn load<M: LoraModule>(
    model: &M,
    form: &ModelForm,
    file: &TensorFile,
    used: &mut HashSet<String>,
) -> Result<M> {
    let mut problems = Vec::new();
    refuse_merged(model, &mut problems);
    checked(problems)?;
    let mut loading = Loading {
        file,
        used,
        problems: form.unknown_active().collect(),
    };
    let mut paths = BTreeSet::new();
    each_layer(model, |path, _| {
        paths.insert(path.to_string());
    });
    if !paths.iter().eq(form.layers.keys()) {
        loading.problems.extend(other_layers(&paths, form));
        loading.checked()?;
    }
    let mut loaded = model.clone();
    let form_of = |path: &str| &form.layers[path];
    try_each_layer_mut(&mut loaded, |path, layer| {
        loading.layer(path, layer, form_of(path))
    })?;
    loading.checked()?;
    let active: Vec<&str> = form.active.iter().map(String::as_str).collect();
    try_each_layer_mut(&mut loaded, |_, layer| activate_layer(layer, &active))?;
    retie(&mut loaded)?;
    // Only now do heads have their views of an embedding's adapters.
    try_each_layer_mut(&mut loaded, |path, layer| {
        loading.views(path, layer, form_of(path))
    })?;
    loading.checked()?;
    Ok(loaded)
}

fn other_layers(paths: &BTreeSet<String>, form: &ModelForm) -> Vec<String> {
    let unknown = form.layers.keys().filter(|path| !paths.contains(*path));
    let unknown =
        unknown.map(|path| format!("is of another model: this one has no layer `{path}`"));
    let missing = paths.iter().filter(|path| !form.layers.contains_key(*path));
    let missing = missing.map(|path| format!("is of another model: it has no layer `{path}`"));
    unknown.chain(missing).collect()
}

struct Loading<'a> {
    file: &'a TensorFile,
    used: &'a mut HashSet<String>,
    problems: Vec<String>,
}

impl Loading<'_> {
    fn checked(&mut self) -> Result<()> {
        match std::mem::take(&mut self.problems) {
            problems if problems.is_empty() => Ok(()),
            problems => Err(Error::File {
                path: self.file.path().into(),
                problems,
            }),
        }
    }

    /// Replaces all that adapters have at the layer by what the state says.
    fn layer(&mut self, path: &str, layer: &mut dyn Layer, form: &LayerForm) -> Result<()> {
        if layer.copies().is_none() {
            return self.field(path, layer, form);
        }
        copies::clear(layer)?;
        self.base(path, layer, form)?;
        let mut bases = Vec::new();
        if let Some(adapted) = layer.adapted_mut() {
            adapted.adapters_mut().list.clear();
            adapted.adapters_mut().tokens.clear();
            for form in form.adapters.iter().filter(|form| !form.is_view) {
                let adapter = self.adapter(path, adapted, form)?;
                if let Some(adapter) = adapter {
                    bases.extend(residual(path, adapted, &adapter)?);
                    adapted.adapters_mut().list.push(adapter);
                }
            }
            for form in &form.rows {
                let rows = self.rows(path, adapted, form)?;
                adapted.adapters_mut().tokens.extend(rows);
            }
        } else if !form.adapters.is_empty() || !form.rows.is_empty() {
            let kind = layer.kind();
            let problem = format!("has an adapter for `{path}`, a {kind}, which takes none");
            self.problems.push(problem);
        }
        for form in &form.copies {
            let base = bases.iter().find(|(adapter, _)| *adapter == form.adapter);
            self.copy(path, layer, form, base.map(|(_, base)| base))?;
        }
        Ok(())
    }

    /// Checks that the layer has the base's parameters with which it was trained. A weight that the
    /// adapter's start changed for good is changed again.
    fn base(&mut self, path: &str, layer: &mut dyn Layer, form: &LayerForm) -> Result<()> {
        let mut own = copies::seen_by(layer, "");
        if fingerprint(&own)? == form.base {
            return Ok(());
        }
        let mut forms = form.adapters.iter();
        let changes = forms.find(|form| form.start.is_some());
        if let (Some(adapter), Some(adapted)) = (changes, layer.adapted_mut())
            && let Some(start) = start_again(path, adapted, adapter)?
        {
            let weight = match (&start.base, &start.blocks) {
                (Some(base), _) => adapted.form().to_matrix(base)?,
                _ => own[0].param.tensor.clone(),
            };
            (own[0].param.tensor, own[0].blocks) = (weight.clone(), start.blocks);
            if fingerprint(&own)? == form.base {
                match &own[0].blocks {
                    Some(blocks) => quantised::replace(adapted, blocks)?,
                    None => *adapted.weight_mut() = weight,
                }
                return Ok(());
            }
        }
        self.problems.push(format!(
            "was trained with other base weights than this model has at `{path}`: load the same base \
             model, in the same dtype"
        ));
        Ok(())
    }

    fn adapter(
        &mut self,
        path: &str,
        layer: &dyn Adapted,
        form: &AdapterForm,
    ) -> Result<Option<Adapter>> {
        let Settings {
            rank,
            alpha,
            dropout,
            ..
        } = form.settings;
        let config = LoraConfig::new(rank).alpha(alpha).dropout(dropout);
        let is_valid = check_name(&form.name).and_then(|()| config.validate());
        if is_valid.is_err() || form.trained.len() != form.parts().count() {
            let problem = format!("its adapter `{}` of `{path}` contradicts itself", form.name);
            self.problems.push(problem);
            return Ok(None);
        }
        let (a, b) = layer.shapes(rank);
        let outputs = b.dims()[0];
        let mut values = Vec::new();
        for (part, &trained) in form.parts().zip(&form.trained) {
            let shape = match part {
                Part::A => a.clone(),
                Part::B => b.clone(),
                Part::Magnitude => dora::magnitude_shape(layer.unmerged_weight().rank(), outputs),
                _ => outputs.into(),
            };
            let name = part.name(layer.is_lookup(), &form.name);
            let value = self.value(&of_adapter(path, &name), &shape, layer.unmerged_weight())?;
            values.push(value.map(|value| variable(value, trained)).transpose()?);
        }
        let initial = match form.start {
            Some(init) if init != Init::Loftq && layer.adapters().blocks.is_none() => {
                let mut start = |part: Part, shape: &Shape| {
                    let name = part.name(layer.is_lookup(), &form.name);
                    self.value(&of_start(path, &name), shape, layer.unmerged_weight())
                };
                start(Part::A, &a)?.zip(start(Part::B, &b)?)
            }
            _ => None,
        };
        let mut values = values.into_iter();
        let mut next = || values.next().flatten();
        let (Some(a), Some(b)) = (next(), next()) else {
            return Ok(None);
        };
        Ok(Some(Adapter {
            name: form.name.clone(),
            a,
            b,
            bias: if form.has_bias { next() } else { None },
            magnitude: if form.has_magnitude { next() } else { None },
            settings: form.settings,
            scale: form.scale,
            keeps_b: form.keeps_b,
            tie: if form.shares { Tie::Shares } else { Tie::None },
            parked: Parked::default(),
            start: form.start,
            loftq: form.loftq.clone(),
            initial,
        }))
    }

    fn rows(&mut self, path: &str, layer: &dyn Adapted, form: &RowsForm) -> Result<Option<Tokens>> {
        let table = &quantised::unmerged_values(layer)?;
        let tokens = Tokens::new(path, &form.adapter, &form.ids, table)?;
        let name = Part::Tokens.name(layer.is_lookup(), &form.adapter);
        let rows = self.value(&of_adapter(path, &name), tokens.rows().shape(), table)?;
        let rows = rows.map(|rows| variable(rows, form.trained)).transpose()?;
        Ok(rows.map(|rows| tokens.with_rows(rows)))
    }

    fn copy(
        &mut self,
        path: &str,
        layer: &mut dyn Layer,
        form: &CopyForm,
        residual: Option<&Tensor>,
    ) -> Result<()> {
        let own = copies::seen_by(layer, "");
        if form.trains.len() != own.len() || form.trained.len() != own.len() {
            let problem = format!("its copy of `{path}` has other parameters than the layer");
            self.problems.push(problem);
            return Ok(());
        }
        let mut tensors = Vec::new();
        for (place, own) in own.iter().enumerate() {
            let base = &own.param.tensor;
            if !form.trains[place] {
                let is_residual = own.param.name == "weight";
                let tensor = residual.filter(|_| is_residual).unwrap_or(base);
                tensors.push(tensor.detach());
                continue;
            }
            let key = of_copy(&form.adapter, path, &own.param.name);
            if let Some(value) = self.value(&key, base.shape(), base)? {
                tensors.push(variable(value, form.trained[place])?);
            }
        }
        if tensors.len() == own.len() {
            let tie = if form.shares { Tie::Shares } else { Tie::None };
            let trains = form.trains.clone();
            copies::add(layer, path, &form.adapter, tensors, trains, tie)?;
        }
        Ok(())
    }

    /// A tensor that is a field of the model.
    fn field(&mut self, path: &str, layer: &mut dyn Layer, form: &LayerForm) -> Result<()> {
        let is_trained = layer.params().iter().any(|p| p.tensor.is_variable());
        if !form.is_trained_field && !is_trained {
            return self.base(path, layer, form);
        }
        for param in layer.params_mut(Access::new()) {
            if form.is_trained_field {
                let value = self.value(&of_field(path), param.tensor.shape(), param.tensor)?;
                if let Some(value) = value {
                    *param.tensor = variable(value, true)?;
                }
            } else if param.tensor.is_variable() {
                self.problems.push(format!(
                    "does not train `{path}`, a tensor that is a field, which this model trains: its \
                     base value is not kept; begin with the base model's `to_frozen()`"
                ));
            }
        }
        Ok(())
    }

    /// What a head has of its own beside its view of an embedding's adapter: the magnitude.
    fn views(&mut self, path: &str, layer: &mut dyn Layer, form: &LayerForm) -> Result<()> {
        let views = form.adapters.iter().filter(|form| form.is_view);
        for form in views.filter(|form| form.has_magnitude) {
            let adapted = layer.adapted_mut();
            let view = adapted.and_then(|layer| layer.adapters_mut().get_mut(&form.name));
            let magnitude = view.and_then(|view| view.magnitude.as_mut());
            let Some(magnitude) = magnitude else {
                let name = &form.name;
                self.problems.push(format!(
                    "ties `{name}` of `{path}` to an embedding, whose weight the layer does not share"
                ));
                continue;
            };
            let key = of_adapter(path, &Part::Magnitude.name(false, &form.name));
            if let Some(value) = self.value(&key, magnitude.shape(), magnitude)? {
                *magnitude = variable(value, form.trained.contains(&true))?;
            }
        }
        Ok(())
    }

    /// A tensor of the file, of this shape, on the device of `near`.
    fn value(&mut self, key: &str, shape: &Shape, near: &Tensor) -> Result<Option<Tensor>> {
        self.used.insert(key.into());
        let problem = match self.file.shape(key) {
            None => format!("`{key}` is missing"),
            Some(found) if found != shape.dims() => {
                format!(
                    "`{key}` has shape {found:?}, the model's {:?}",
                    shape.dims()
                )
            }
            Some(_) => {
                let value = self.file.tensor(key)?;
                match value.dtype().is_float() && ops::is_finite(&value)? {
                    true => return Ok(Some(value.to_device(near.device())?)),
                    false => format!("`{key}` holds values that are not finite numbers"),
                }
            }
        };
        self.problems.push(problem);
        Ok(None)
    }
}

impl ModelForm {
    /// The problems of active adapters that no layer has.
    fn unknown_active(&self) -> impl Iterator<Item = String> {
        let known = |layer: &LayerForm, name: &String| {
            layer.adapters.iter().any(|form| form.name == *name)
                || layer.rows.iter().any(|form| form.adapter == *name)
                || layer.copies.iter().any(|form| form.adapter == *name)
        };
        // A trained field belongs to an adapter that it does not name.
        let layers = self.layers.values();
        let has_fields = layers.clone().any(|layer| layer.is_trained_field);
        let unknown = self
            .active
            .iter()
            .filter(move |name| !has_fields && !layers.clone().any(|layer| known(layer, name)));
        unknown.map(|name| format!("activates `{name}`, an adapter that it does not have"))
    }
}

impl AdapterForm {
    /// The parts that the adapter has of its own, in their order.
    fn parts(&self) -> impl Iterator<Item = Part> {
        let both = [Part::A, Part::B].into_iter().filter(|_| !self.is_view);
        let bias = self.has_bias.then_some(Part::Bias);
        let magnitude = self.has_magnitude.then_some(Part::Magnitude);
        both.chain(bias.filter(|_| !self.is_view)).chain(magnitude)
    }
}

fn variable(value: Tensor, trained: bool) -> Result<Tensor> {
    Ok(match trained {
        true => Var::from_tensor(&value)?.into_inner(),
        false => value,
    })
}

/// The start of an adapter that changes the layer's weight for good: LoftQ's, or one that leaves a
/// residual base in blocks.
fn start_again(path: &str, layer: &dyn Adapted, form: &AdapterForm) -> Result<Option<Start>> {
    let blocks = layer.adapters().blocks.as_ref();
    let is_lasting = form.loftq.is_some() || blocks.is_some();
    let (Some(init), true) = (form.start, is_lasting) else {
        return Ok(None);
    };
    let Some(matrix) = updates::matrix(layer)? else {
        return Ok(None);
    };
    let config = LoraConfig::new(form.settings.rank)
        .init(init)
        .loftq_config(form.loftq.clone().unwrap_or_default());
    let target = Target {
        path,
        weight: &matrix,
        rank: form.settings.rank,
        scaling: form.settings.scaling,
        blocks: blocks.map(|blocks| blocks.dtype()),
    };
    init::start(&target, &config, None, &mut init::rng(None, path)).map(Some)
}

/// The residual base of an adapter that has one, with the adapter's name.
fn residual(
    path: &str,
    layer: &dyn Adapted,
    adapter: &Adapter,
) -> Result<Option<(String, Tensor)>> {
    let (Some((a, b)), Some(matrix)) = (&adapter.initial, updates::matrix(layer)?) else {
        return Ok(None);
    };
    let base = init::residual(&matrix, a, b, adapter.settings.scaling);
    let base = base.map_err(|error| error.at(path))?;
    let base = layer.form().to_matrix(&base)?;
    Ok(Some((adapter.name.clone(), base)))
}
