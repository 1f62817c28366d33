//! The state of a model.

use super::form::{AdapterForm, CopyForm, LayerForm, ModelForm, RowsForm};
use super::{fingerprint, of_adapter, of_copy, of_field, of_start};
use crate::adapter::copies::{self, Own};
use crate::adapter::{Adapter, Tie};
use crate::manage::{active, checked, refuse_merged};
use crate::traits::try_each_layer;
use crate::{Adapted, Layer, LoraModule, Part, Result};
use candle_core::Tensor;

/// What the adapters of a model are, and their tensors by key.
pub(crate) fn save<M: LoraModule>(model: &M) -> Result<(ModelForm, Vec<(String, Tensor)>)> {
    let mut problems = Vec::new();
    refuse_merged(model, &mut problems);
    checked(problems)?;
    let mut form = ModelForm {
        active: active(model),
        ..Default::default()
    };
    let mut tensors = Vec::new();
    try_each_layer(model, |path, layer| {
        let mut saving = Saving {
            path,
            tensors: &mut tensors,
        };
        form.layers.insert(path.into(), saving.layer(layer)?);
        Ok(())
    })?;
    Ok((form, tensors))
}

struct Saving<'a> {
    path: &'a str,
    tensors: &'a mut Vec<(String, Tensor)>,
}

impl Saving<'_> {
    fn layer(&mut self, layer: &dyn Layer) -> Result<LayerForm> {
        let mut form = LayerForm::default();
        if let Some(adapted) = layer.adapted() {
            self.adapted(adapted, &mut form);
        }
        for adapter in layer.copies().into_iter().flat_map(|c| c.adapters()) {
            form.copies.extend(self.copy(layer, adapter));
        }
        let own = copies::seen_by(layer, "");
        match own.iter().find(|own| own.trained) {
            // A tensor that is a field has no base value any more.
            Some(field) => {
                form.is_trained_field = true;
                self.add(of_field(self.path), &field.param.tensor);
            }
            None => form.base = fingerprint(&own)?,
        }
        Ok(form)
    }

    fn adapted(&mut self, layer: &dyn Adapted, form: &mut LayerForm) {
        let lookup = layer.is_lookup();
        for adapter in layer.adapters().iter() {
            for (part, tensor) in adapter.own_tensors() {
                let name = part.name(lookup, adapter.name());
                self.add(of_adapter(self.path, &name), tensor);
            }
            if let Some((a, b)) = &adapter.initial {
                for (part, tensor) in [(Part::A, a), (Part::B, b)] {
                    let name = part.name(lookup, adapter.name());
                    self.add(of_start(self.path, &name), tensor);
                }
            }
            form.adapters.push(form_of(adapter));
        }
        let rows = layer.adapters().tokens().iter();
        for rows in rows.filter(|rows| !rows.is_shared()) {
            let name = Part::Tokens.name(lookup, rows.adapter());
            self.add(of_adapter(self.path, &name), rows.rows());
            form.rows.push(RowsForm {
                adapter: rows.adapter().into(),
                ids: rows.ids().to_vec(),
                trained: rows.rows().is_variable(),
            });
        }
    }

    /// The adapter's copy; `None` for one that follows from an embedding's.
    fn copy(&mut self, layer: &dyn Layer, adapter: &str) -> Option<CopyForm> {
        let tie = layer.copies()?.tie_of(adapter);
        if tie == Tie::Shared {
            return None;
        }
        let own = copies::seen_by(layer, adapter);
        for Own { param, .. } in own.iter().filter(|own| own.trained) {
            self.add(of_copy(adapter, self.path, &param.name), &param.tensor);
        }
        let variables = own.iter().map(|own| own.param.tensor.is_variable());
        Some(CopyForm {
            adapter: adapter.into(),
            shares: tie == Tie::Shares,
            trains: own.iter().map(|own| own.trained).collect(),
            trained: variables.collect(),
        })
    }

    fn add(&mut self, key: String, tensor: &Tensor) {
        self.tensors.push((key, tensor.detach()));
    }
}

fn form_of(adapter: &Adapter) -> AdapterForm {
    AdapterForm {
        name: adapter.name().into(),
        settings: adapter.settings(),
        scale: adapter.scale,
        keeps_b: adapter.keeps_b,
        shares: adapter.tie == Tie::Shares,
        is_view: adapter.is_tied(),
        start: adapter.start,
        loftq: adapter.loftq.clone(),
        has_bias: adapter.bias.is_some(),
        has_magnitude: adapter.magnitude.is_some(),
        trained: adapter
            .own_tensors()
            .map(|(_, tensor)| tensor.is_variable())
            .collect(),
    }
}
