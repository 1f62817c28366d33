//! Reading a `config.json`.

use super::timm;
use super::{VitAct, VitConfig, VitDropouts, VitNames, VitPool};
use crate::models::keys::{self, Keys, MAX_LAYERS, MAX_WIDTH};
use crate::models::labels;
use candle_nn::Activation;
use serde_json::{Map, Value};

/// The supported values of `model_type`, and the names of the layers. The last letter says whether
/// the tower stands alone, or in a larger model's `vision_config`.
const KINDS: [(&str, VitNames, bool); 7] = [
    ("vit", VitNames::Vit, true),
    ("deit", VitNames::Deit, true),
    ("dinov2", VitNames::Dinov2, true),
    ("clip_vision_model", VitNames::Clip, true),
    ("clip", VitNames::Clip, false),
    ("siglip_vision_model", VitNames::Siglip, true),
    ("siglip", VitNames::Siglip, false),
];

/// Keys that say nothing about the result.
const HARMLESS: &[&str] = &[
    "_name_or_path",
    "add_cross_attention",
    "apply_layernorm",
    "architectures",
    "attention_probs_dropout_prob",
    "dtype",
    "encoder_stride",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "layerscale_value",
    "logit_scale_init_value",
    "model_type",
    "num_labels",
    "out_features",
    "out_indices",
    "pooler_act",
    "pooler_output_size",
    "problem_type",
    "projection_dim",
    "reshape_hidden_states",
    "stage_names",
    "torch_dtype",
    "transformers_version",
    "use_mask_token",
    "vision_use_head",
];

/// Settings that act in training only, where the type does not have them.
const DROPOUTS: &[&str] = &[
    "attention_dropout",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "dropout",
    "hidden_dropout_prob",
];

impl VitConfig {
    /// Whether a file describes a model of images, by its type.
    pub(in crate::models) fn is_of(map: &Map<String, Value>) -> bool {
        timm::is_timms(map) || kind(map).is_ok()
    }

    /// The values of `model_type` that are supported.
    pub(in crate::models) fn model_types() -> impl Iterator<Item = &'static str> {
        KINDS.iter().map(|(name, ..)| *name)
    }

    /// Reads a configuration, or tells everything wrong with it.
    pub(in crate::models) fn parse(map: &Map<String, Value>) -> Result<Self, Vec<String>> {
        if timm::is_timms(map) {
            return timm::parse(map);
        }
        let (model_type, names, alone) = kind(map).map_err(|problem| vec![problem])?;
        let empty = Map::new();
        let inner = match map.get("vision_config") {
            Some(Value::Object(inner)) if !alone => inner,
            _ if !alone => &empty,
            _ => map,
        };
        let keys = Keys::new(inner);
        let class: Vec<String> = Keys::new(map).get("architectures", Vec::new());
        let class = class.first().map_or("", String::as_str);
        let mut config = read(&keys, names);
        config.model_type = model_type.into();
        of_class(&mut config, &Keys::new(map), class);
        if names == VitNames::Clip && (!alone || class.ends_with("WithProjection")) {
            config.projection = Some(Keys::new(map).count("projection_dim", 512, MAX_WIDTH));
        }
        check(&config, &keys);
        config.without_effect = keys.without_effect(DROPOUTS, HARMLESS);
        let problems = keys.into_problems();
        match problems.is_empty() {
            true => Ok(config),
            false => Err(problems),
        }
    }
}

fn kind(map: &Map<String, Value>) -> Result<(&'static str, VitNames, bool), String> {
    let name = map.get("model_type").and_then(Value::as_str);
    let found = KINDS.iter().find(|(known, ..)| Some(*known) == name);
    found.copied().ok_or_else(|| {
        let known: Vec<&str> = VitConfig::model_types().collect();
        let is = match name {
            Some(name) => format!("{name:?}"),
            None => "missing".into(),
        };
        format!(
            "`model_type` is {is}: models of images are {}",
            known.join(", ")
        )
    })
}

fn read(keys: &Keys<'_>, names: VitNames) -> VitConfig {
    use VitNames::{Clip, Dinov2, Siglip};
    let of_text_too = matches!(names, Clip | Siglip);
    let hidden_size = keys.count("hidden_size", 768, MAX_WIDTH);
    let (eps, act, patch) = match names {
        Clip => (1e-5, "quick_gelu", 32),
        Siglip => (1e-6, "gelu_pytorch_tanh", 16),
        Dinov2 => (1e-6, "gelu", 14),
        _ => (1e-12, "gelu", 16),
    };
    let intermediate_size = match names {
        Dinov2 => hidden_size * keys.count("mlp_ratio", 4, 64),
        _ => keys.count("intermediate_size", 3072, MAX_WIDTH),
    };
    if names == Dinov2 {
        keys.only("use_swiglu_ffn", &Value::Bool(false));
        // transformers writes the key, and reads it nowhere.
        keys.find::<Value>("intermediate_size");
    }
    VitConfig {
        model_type: String::new(),
        names,
        image_size: side(keys, "image_size", 224),
        patch_size: side(keys, "patch_size", patch),
        in_chans: keys.count("num_channels", 3, MAX_WIDTH),
        hidden_size,
        intermediate_size,
        num_hidden_layers: keys.count("num_hidden_layers", 12, MAX_LAYERS),
        num_attention_heads: keys.count("num_attention_heads", 12, MAX_WIDTH),
        hidden_act: activation(keys, act),
        layer_norm_eps: keys.get("layer_norm_eps", eps),
        qkv_bias: of_text_too || keys.get("qkv_bias", true),
        patch_bias: names != Clip,
        class_token: names != Siglip,
        distillation_token: names == VitNames::Deit,
        distilled_head: false,
        pre_norm: names == Clip,
        layer_scale: (names == Dinov2).then(|| keys.get("layerscale_value", 1.0)),
        pool: match names {
            Siglip => VitPool::Attention,
            _ => VitPool::Class,
        },
        projection: None,
        labels: Vec::new(),
        dropouts: dropouts(keys, names),
        without_effect: Vec::new(),
    }
}

fn dropouts(keys: &Keys<'_>, names: VitNames) -> VitDropouts {
    if matches!(names, VitNames::Clip | VitNames::Siglip) {
        return VitDropouts {
            attention: keys.dropout("attention_dropout", 0.0),
            ..VitDropouts::default()
        };
    }
    let hidden = keys.dropout("hidden_dropout_prob", 0.0);
    // DINOv2's layers have the dropout of the attention alone.
    let of_layers = match names {
        VitNames::Dinov2 => 0.0,
        _ => hidden,
    };
    VitDropouts {
        embeddings: hidden,
        attention: keys.dropout("attention_probs_dropout_prob", 0.0),
        output: of_layers,
        mlp: of_layers,
        ..VitDropouts::default()
    }
}

/// What the class says: whether there is a classifier, and of which kind.
fn of_class(config: &mut VitConfig, keys: &Keys<'_>, class: &str) {
    let teacher = class.ends_with("ForImageClassificationWithTeacher");
    if teacher || class.ends_with("ForImageClassification") {
        config.labels = labels::read(keys);
        config.distilled_head = teacher;
        if config.names == VitNames::Dinov2 {
            config.pool = VitPool::ClassAndMean;
        }
    }
}

/// A side: a number, or a pair of equal ones.
fn side(keys: &Keys<'_>, key: &str, default: usize) -> usize {
    let side = match keys.find::<Value>(key) {
        Some(Value::Array(sides)) if sides.len() == 2 && sides[0] == sides[1] => sides[0].as_u64(),
        Some(value) => value.as_u64(),
        None => Some(default as u64),
    };
    let side = side.filter(|side| (1..=1 << 16).contains(side));
    side.map_or_else(
        || {
            keys.refuse(key, "a number above 0 is expected, one for both sides");
            default
        },
        |side| side as usize,
    )
}

fn activation(keys: &Keys<'_>, default: &str) -> VitAct {
    let name: String = keys.get("hidden_act", default.into());
    match name.as_str() {
        "quick_gelu" => return VitAct::QuickGelu,
        "gelu_fast" => return VitAct::Plain(Activation::GeluPytorchTanh),
        _ => {}
    }
    VitAct::Plain(keys::activation(&name).unwrap_or_else(|| {
        let known = "supported are gelu, gelu_pytorch_tanh, quick_gelu, relu, silu";
        keys.refuse("hidden_act", known);
        Activation::Gelu
    }))
}

pub(super) fn check(config: &VitConfig, keys: &Keys<'_>) {
    let (width, heads) = (config.hidden_size, config.num_attention_heads);
    if !width.is_multiple_of(heads) {
        let reason = format!("it must divide the width of {width} (`hidden_size`)");
        keys.refuse("num_attention_heads", &reason);
    }
    if config.side() == 0 {
        let reason = format!("an image of side {} has no such patch", config.image_size);
        keys.refuse("patch_size", &reason);
    }
    keys.only("vision_use_head", &Value::Bool(true));
    keys.only("use_mask_token", &Value::Bool(true));
    keys.refuse_quantised();
}
