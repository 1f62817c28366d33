//! What a state says beside its tensors.

use crate::{Init, LoftqConfig, Settings};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The adapters of a model.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelForm {
    /// The names of those that act, in order.
    pub(super) active: Vec<String>,
    /// The layers, by path.
    pub(super) layers: BTreeMap<String, LayerForm>,
}

/// A layer and its adapters.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LayerForm {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) adapters: Vec<AdapterForm>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) rows: Vec<RowsForm>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) copies: Vec<CopyForm>,
    /// The layer is a trained tensor that is a field of the model.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_trained_field: bool,
    /// Tells the base's parameters: training goes on with no others.
    pub(super) base: String,
}

/// A low-rank update.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdapterForm {
    pub(super) name: String,
    pub(super) settings: Settings,
    pub(super) scale: f64,
    pub(super) keeps_b: bool,
    pub(super) shares: bool,
    /// It is a view of the embedding's, but for its own magnitude.
    pub(super) is_view: bool,
    /// The initial value, if it left a residual base.
    pub(super) start: Option<Init>,
    pub(super) loftq: Option<LoftqConfig>,
    pub(super) has_bias: bool,
    pub(super) has_magnitude: bool,
    /// Whether each of its tensors is trained, in their order.
    pub(super) trained: Vec<bool>,
}

/// Trained rows.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RowsForm {
    pub(super) adapter: String,
    pub(super) ids: Vec<u32>,
    pub(super) trained: bool,
}

/// An adapter's copy of a layer's own parameters.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CopyForm {
    pub(super) adapter: String,
    pub(super) shares: bool,
    /// By parameter: the adapter trains it.
    pub(super) trains: Vec<bool>,
    /// By parameter: it is trained at present.
    pub(super) trained: Vec<bool>,
}
