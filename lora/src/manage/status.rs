//! Which adapters a model has and what they are doing, layer by layer: PEFT's
//! `get_layer_status` and `get_model_status`.

use super::{merged, names};
use crate::config::Kind;
use crate::traits::each_layer;
use crate::{LoraModule, Summary};
use indexmap::IndexMap;

/// An answer about several layers or tensors, which may differ among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State<T> {
    /// The same everywhere.
    Uniform(T),
    /// Not the same everywhere, PEFT's `"irregular"`.
    #[default]
    Irregular,
}

impl<T: PartialEq> State<T> {
    /// The common value, or irregular; `None` if there are no values.
    fn of(mut values: impl Iterator<Item = Self>) -> Option<Self> {
        let first = values.next()?;
        Some(match values.all(|value| value == first) {
            true => first,
            false => Self::Irregular,
        })
    }

    /// The value, if it is the same everywhere.
    pub fn uniform(&self) -> Option<&T> {
        match self {
            Self::Uniform(value) => Some(value),
            Self::Irregular => None,
        }
    }
}

/// The low-rank updates of one layer. Made by [`LoraModule::layer_status`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerStatus {
    /// The layer's path.
    pub name: String,
    /// Its kind, for example `Linear`.
    pub kind: Kind,
    /// Whether an adapter that this layer has is active.
    pub enabled: bool,
    /// The model's active adapters, in order, even those that this layer does not have.
    pub active_adapters: Vec<String>,
    /// The adapters merged into the weight, in order.
    pub merged_adapters: Vec<String>,
    /// The adapters that the layer has.
    pub available_adapters: Vec<String>,
    /// Whether each adapter is trained; irregular where only some of its tensors are.
    pub requires_grad: IndexMap<String, State<bool>>,
    /// The scaling of each adapter at present.
    pub scaling: IndexMap<String, f64>,
    /// The device of each adapter.
    pub devices: IndexMap<String, String>,
}

/// The adapters of a whole model. Made by [`LoraModule::model_status`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelStatus {
    /// Number of values that are trained.
    pub trainable_params: usize,
    /// Number of values in all parameters.
    pub total_params: usize,
    /// Number of layers that have low-rank updates.
    pub num_adapter_layers: usize,
    /// Whether some adapter is active. As in PEFT, a layer counts even if it does not have the
    /// active adapter; [`LayerStatus::enabled`] tells whether it does.
    pub enabled: State<bool>,
    /// The active adapters, in order.
    pub active_adapters: State<Vec<String>>,
    /// The merged adapters, in order.
    pub merged_adapters: State<Vec<String>>,
    /// All adapters, also those without low-rank updates.
    pub available_adapters: Vec<String>,
    /// Whether the low-rank updates of each adapter are trained.
    pub requires_grad: IndexMap<String, State<bool>>,
}

pub(crate) fn layer_status<M: LoraModule>(model: &M) -> Vec<LayerStatus> {
    let mut layers = Vec::new();
    each_layer(model, |path, layer| {
        let Some(adapted) = layer.adapted() else {
            return;
        };
        let adapters = adapted.adapters();
        if adapters.is_empty() {
            return;
        }
        let of_each = adapters.iter().map(|adapter| {
            let tensors = adapter
                .tensors()
                .map(|(_, t)| State::Uniform(t.is_variable()));
            let requires_grad = State::of(tensors).unwrap_or_default();
            let device = format!("{:?}", adapter.a().device().location());
            (adapter, requires_grad, device.to_lowercase())
        });
        let of_each: Vec<_> = of_each.collect();
        let name = |adapter: &crate::Adapter| adapter.name().to_string();
        layers.push(LayerStatus {
            name: path.into(),
            kind: layer.kind(),
            enabled: adapters.active().next().is_some(),
            active_adapters: adapters.active.clone(),
            merged_adapters: adapters.merged().to_vec(),
            available_adapters: adapters.iter().map(name).collect(),
            requires_grad: of_each
                .iter()
                .map(|(a, r, _)| (name(a), r.clone()))
                .collect(),
            scaling: of_each
                .iter()
                .map(|(a, ..)| (name(a), a.scaling()))
                .collect(),
            devices: of_each
                .iter()
                .map(|(a, _, d)| (name(a), d.clone()))
                .collect(),
        });
    });
    layers
}

pub(crate) fn model_status<M: LoraModule>(model: &M) -> ModelStatus {
    let layers = layer_status(model);
    let totals = Summary::of(model);
    let available = names(model);
    let requires_grad = available.iter().filter_map(|name| {
        let states = layers
            .iter()
            .filter_map(|layer| layer.requires_grad.get(name));
        Some((name.clone(), State::of(states.cloned())?))
    });
    // A layer says nothing about an adapter that it does not have.
    let own = |layer: &LayerStatus, names: &[String]| -> Vec<String> {
        let has = |name: &&String| layer.available_adapters.contains(name);
        names.iter().filter(has).cloned().collect()
    };
    let merged = merged(model);
    let merged_alike = layers
        .iter()
        .all(|layer| layer.merged_adapters == own(layer, &merged));
    let enabled = layers
        .iter()
        .map(|layer| State::Uniform(!layer.active_adapters.is_empty()));
    let active = layers
        .iter()
        .map(|layer| State::Uniform(layer.active_adapters.clone()));
    ModelStatus {
        trainable_params: totals.trainable,
        total_params: totals.total,
        num_adapter_layers: layers.len(),
        enabled: State::of(enabled).unwrap_or(State::Uniform(false)),
        active_adapters: State::of(active).unwrap_or(State::Uniform(Vec::new())),
        merged_adapters: match merged_alike {
            true => State::Uniform(merged),
            false => State::Irregular,
        },
        requires_grad: requires_grad.collect(),
        available_adapters: available,
    }
}
