//! Adapters that PEFT trained where layers have other names.

use super::config::{VitConfig, VitNames};
use crate::peft::AdapterDir;
use std::path::Path;

/// What transformers 5 calls the layers of ViT and DeiT, and what their files call those.
const VIT: [[&str; 2]; 7] = [
    [
        "layers.*.attention.q_proj",
        "encoder.layer.*.attention.attention.query",
    ],
    [
        "layers.*.attention.k_proj",
        "encoder.layer.*.attention.attention.key",
    ],
    [
        "layers.*.attention.v_proj",
        "encoder.layer.*.attention.attention.value",
    ],
    [
        "layers.*.attention.o_proj",
        "encoder.layer.*.attention.output.dense",
    ],
    ["layers.*.mlp.fc1", "encoder.layer.*.intermediate.dense"],
    ["layers.*.mlp.fc2", "encoder.layer.*.output.dense"],
    ["layers.*", "encoder.layer.*"],
];

/// The same of DINOv2.
const DINOV2: [[&str; 2]; 4] = [
    [
        "encoder.layer.*.attention.q_proj",
        "encoder.layer.*.attention.attention.query",
    ],
    [
        "encoder.layer.*.attention.k_proj",
        "encoder.layer.*.attention.attention.key",
    ],
    [
        "encoder.layer.*.attention.v_proj",
        "encoder.layer.*.attention.attention.value",
    ],
    [
        "encoder.layer.*.attention.o_proj",
        "encoder.layer.*.attention.output.dense",
    ],
];

impl VitConfig {
    /// The directory of an adapter that PEFT trained on this model in transformers 5. That version
    /// calls some layers of ViT, DeiT and DINOv2 by other names than their files, which this model
    /// follows: `vit.layers.0.attention.q_proj` is
    /// `vit.encoder.layer.0.attention.attention.query`. An adapter that an earlier version trained has
    /// the files' names.
    ///
    /// ```
    /// use lora::models::vit::VitConfig;
    ///
    /// let config: VitConfig = serde_json::from_str(r#"{"model_type": "vit"}"#)?;
    /// let directory = config.adapter_of_transformers_5("adapter");
    /// // let model = vit.with_adapter(directory)?;
    /// # let _ = directory;
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    pub fn adapter_of_transformers_5(&self, path: impl AsRef<Path>) -> AdapterDir {
        let rules: &[[&str; 2]] = match self.names {
            VitNames::Vit | VitNames::Deit => &VIT,
            VitNames::Dinov2 => &DINOV2,
            VitNames::Timm | VitNames::Clip | VitNames::Siglip => &[],
        };
        let prefix = self.prefix().unwrap_or_default();
        let directory = AdapterDir::new(path);
        rules.iter().fold(directory, |directory, [newer, files]| {
            directory.rename(format!("{prefix}.{newer}"), format!("{prefix}.{files}"))
        })
    }
}
