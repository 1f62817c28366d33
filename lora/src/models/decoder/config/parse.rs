//! Reading a `config.json`.

use super::families::{FAMILIES, Family};
use super::rope::{self, Surroundings};
use super::{Biases, DecoderConfig, LayerConfig, NormPlacement, Rope};
use crate::models::keys::{self, Keys, MAX_LAYERS, MAX_WIDTH};
use candle_nn::Activation;
use serde_json::{Map, Value};

/// More than any model has. A damaged file must not make us ask for all memory.
const MAX_COUNT: usize = 1 << 10;

/// Which layers have a sliding window.
pub(super) struct Layers {
    window: Option<usize>,
    slides: Box<dyn Fn(usize) -> bool>,
    /// Whether the family reads `layer_types`.
    has_types: bool,
}

/// One window, or none, for all layers.
pub(super) fn window_of_all(window: Option<usize>) -> Layers {
    Layers {
        window,
        slides: Box::new(move |_| window.is_some()),
        has_types: false,
    }
}

/// The layers slide by this rule, unless `layer_types` says which do.
pub(super) fn every_layer(
    window: Option<usize>,
    slides: impl Fn(usize) -> bool + 'static,
) -> Layers {
    Layers {
        window,
        slides: Box::new(slides),
        has_types: true,
    }
}

/// Keys that say nothing about the result: of files, tokens, generation, training and outputs.
const HARMLESS: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "_sliding_window_pattern",
    "architectures",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "hidden_activation",
    "hidden_act",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "max_window_layers",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "return_dict",
    "router_aux_loss_coef",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "transformers.js_config",
    "unk_token_id",
    "use_cache",
];

/// Settings that act in training only, and not here.
const DROPOUTS: &[&str] = &["resid_pdrop", "embd_pdrop", "router_jitter_noise"];

impl DecoderConfig {
    /// Reads a configuration, or tells everything wrong with it.
    pub(in crate::models) fn parse(map: &Map<String, Value>) -> Result<Self, Vec<String>> {
        let keys = Keys::new(map);
        let family = match family(&keys) {
            Ok(family) => family,
            Err(problem) => return Err(vec![problem]),
        };
        let mut config = sizes(&keys, family);
        let layers = (family.own)(&mut config, &keys);
        slide(&mut config, &keys, &layers);
        config.ropes = ropes(&config, &keys, family);
        if config.ropes.len() > 1 {
            for layer in &mut config.layers {
                layer.rope = Some(usize::from(layer.window.is_some()));
            }
        }
        check(&config, &keys);
        config.without_effect = keys.without_effect(DROPOUTS, HARMLESS);
        let problems = keys.into_problems();
        match problems.is_empty() {
            true => Ok(config),
            false => Err(problems),
        }
    }

    /// The values of `model_type` that are supported.
    pub(in crate::models) fn model_types() -> impl Iterator<Item = &'static str> {
        FAMILIES.iter().map(|family| family.name)
    }
}

fn family(keys: &Keys<'_>) -> Result<&'static Family, String> {
    let classes = classes(keys);
    let of_class = |class: &str, family: &&Family| {
        class.strip_prefix(family.class) == Some("ForCausalLM")
            || class.strip_prefix(family.class) == Some("Model")
    };
    let name: Option<String> = keys.find("model_type");
    let found = match &name {
        Some(name) => FAMILIES.iter().find(|family| family.name == name),
        None => FAMILIES
            .iter()
            .find(|f| classes.iter().any(|class| of_class(class, f))),
    };
    found.ok_or_else(|| {
        let known: Vec<&str> = DecoderConfig::model_types().collect();
        let is = match name {
            Some(name) => format!("{name:?}"),
            None => "missing".into(),
        };
        format!("`model_type` is {is}: decoders are {}", known.join(", "))
    })
}

/// The names of the model's classes in transformers.
fn classes(keys: &Keys<'_>) -> Vec<String> {
    keys.get("architectures", Vec::new())
}

fn sizes(keys: &Keys<'_>, family: &Family) -> DecoderConfig {
    let width = |key: &str, default: usize| keys.count(key, default, MAX_WIDTH);
    let hidden_size = width("hidden_size", family.hidden_size);
    let heads = width("num_attention_heads", family.num_attention_heads);
    let kv_heads = match family.num_key_value_heads {
        Some(default) if !keys.has_null("num_key_value_heads") => default,
        _ => heads,
    };
    let head_dim = match family.head_dim {
        Some(default) if !keys.has_null("head_dim") => default,
        _ => hidden_size / heads.max(1),
    };
    let head_dim = width("head_dim", head_dim);
    let count = keys.count("num_hidden_layers", family.num_hidden_layers, MAX_LAYERS);
    let layer = LayerConfig {
        rope: Some(0),
        ..LayerConfig::default()
    };
    DecoderConfig {
        model_type: family.name.into(),
        vocab_size: keys.count("vocab_size", family.vocab_size, 1 << 30),
        hidden_size,
        intermediate_size: width("intermediate_size", family.intermediate_size),
        num_attention_heads: heads,
        num_key_value_heads: width("num_key_value_heads", kv_heads),
        head_dim,
        max_position_embeddings: keys.count(
            "max_position_embeddings",
            family.max_position_embeddings,
            1 << 40,
        ),
        rms_norm_eps: keys.get("rms_norm_eps", family.rms_norm_eps),
        hidden_act: activation(keys, family),
        has_head: !classes(keys).iter().any(|class| class.ends_with("Model")),
        tie_word_embeddings: keys.get("tie_word_embeddings", family.tie_word_embeddings),
        layers: vec![layer; count],
        ropes: Vec::new(),
        biases: Biases::default(),
        joined: false,
        norms: NormPlacement::Before,
        norms_add_one: false,
        qk_norm: None,
        experts: None,
        embedding_multiplier: 1.0,
        residual_multiplier: 1.0,
        attention_multiplier: (head_dim as f64).powf(-0.5),
        logits_scaling: 1.0,
        attn_logit_softcapping: None,
        final_logit_softcapping: None,
        attention_dropout: keys.get("attention_dropout", 0.0),
        without_effect: Vec::new(),
    }
}

/// The activation, under the key that the family reads.
fn activation(keys: &Keys<'_>, family: &Family) -> Activation {
    let (key, default) = match family.name {
        "gemma2" | "gemma3_text" => ("hidden_activation", "gelu_pytorch_tanh"),
        "gemma" => ("hidden_act", "gelu_pytorch_tanh"),
        _ => ("hidden_act", "silu"),
    };
    let name: String = keys.get(key, default.into());
    // The first Gemma was published with a wrong name.
    if (family.name, name.as_str()) == ("gemma", "gelu") {
        return Activation::GeluPytorchTanh;
    }
    keys::activation(&name).unwrap_or_else(|| {
        keys.refuse(key, "supported are silu, gelu, gelu_pytorch_tanh, relu");
        Activation::Silu
    })
}

/// Gives the layers their windows.
fn slide(config: &mut DecoderConfig, keys: &Keys<'_>, layers: &Layers) {
    let types: Option<Vec<String>> = keys.find("layer_types");
    let count = config.layers.len();
    if types.as_ref().is_some_and(|types| types.len() != count) {
        let expected = format!("{count} types are expected, one for each layer");
        return keys.refuse("layer_types", &expected);
    }
    for (index, layer) in config.layers.iter_mut().enumerate() {
        let by_rule = (layers.slides)(index);
        let slides = match types.as_ref().map(|types| types[index].as_str()) {
            None => by_rule,
            Some("full_attention") => false,
            Some("sliding_attention") => true,
            Some(_) => {
                let known = "supported are full_attention and sliding_attention";
                return keys.refuse("layer_types", known);
            }
        };
        if slides != by_rule && !layers.has_types {
            let problem = format!(
                "{} has one type of attention for all layers",
                config.model_type
            );
            return keys.refuse("layer_types", &problem);
        }
        layer.window = layers.window.filter(|_| slides);
        if slides && layer.window.is_none() {
            return keys.refuse(
                "sliding_window",
                "layers with sliding attention need a window",
            );
        }
    }
    if layers.window == Some(0) {
        keys.refuse("sliding_window", "a number above 0 is expected");
    }
}

/// The ropes: one for all layers, or in Gemma 3 one for the full and one for the sliding layers.
fn ropes(config: &DecoderConfig, keys: &Keys<'_>, family: &Family) -> Vec<Rope> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let is_phi3 = family.name == "phi3";
    let original = keys.find(ORIGINAL).or(is_phi3.then_some(4096));
    let around = Surroundings {
        head_dim: config.head_dim,
        max_position_embeddings: config.max_position_embeddings,
        theta: rope::base(keys, "rope_theta", family.rope_theta),
        partial: keys.get("partial_rotary_factor", 1.0),
        original,
        is_phi3,
    };
    let older = keys.object("rope_scaling");
    let newer = keys.object("rope_parameters");
    if older.is_some() && newer.is_some() {
        keys.refuse(
            "rope_scaling",
            "rope_parameters is given, too: only one of both can say",
        );
    }
    let empty = Map::new();
    let read = |object: Option<Keys<'_>>, around: &Surroundings| {
        let object = object.unwrap_or_else(|| keys.without(&empty));
        let rope = rope::read(&object, around);
        keys.close(object);
        rope
    };
    if family.name != "gemma3_text" {
        return vec![read(older.or(newer), &around)];
    }
    let local = Surroundings {
        theta: rope::base(keys, "rope_local_base_freq", 1e4),
        ..around
    };
    let of_type = |kind: &str| newer.as_ref().and_then(|newer| newer.object(kind));
    let (full, sliding) = (of_type("full_attention"), of_type("sliding_attention"));
    let ropes = vec![read(older.or(full), &around), read(sliding, &local)];
    if let Some(newer) = newer {
        keys.close(newer);
    }
    ropes
}

/// What no single key shows.
fn check(config: &DecoderConfig, keys: &Keys<'_>) {
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    if !heads.is_multiple_of(kv_heads) {
        let reason = format!("it must divide the {heads} query heads (num_attention_heads)");
        keys.refuse("num_key_value_heads", &reason);
    }
    if !config.head_dim.is_multiple_of(2) {
        let reason = format!("heads of {} numbers cannot turn in pairs", config.head_dim);
        keys.refuse("head_dim", &reason);
    }
    for (key, value) in [
        ("attn_logit_softcapping", config.attn_logit_softcapping),
        ("final_logit_softcapping", config.final_logit_softcapping),
    ] {
        if value.is_some_and(|cap| cap <= 0.0) {
            keys.refuse(key, "a number above 0 is expected");
        }
    }
    if config.attn_logit_softcapping == Some(1.0) {
        keys.refuse("attn_logit_softcapping", "the attention takes 1 for no cap");
    }
    if config.rms_norm_eps < 0.0 {
        keys.refuse("rms_norm_eps", "a number of at least 0 is expected");
    }
    if let Some(experts) = &config.experts {
        if !(1..=MAX_COUNT).contains(&experts.count) {
            keys.problem(format!(
                "{} experts: 1 to {MAX_COUNT} are supported",
                experts.count
            ));
        }
        if !(1..=experts.count).contains(&experts.per_token) {
            let reason = format!("a token has 1 to all {} experts", experts.count);
            keys.refuse("num_experts_per_tok", &reason);
        }
        if !(1..=MAX_WIDTH).contains(&experts.intermediate_size) {
            let reason = format!("a number from 1 to {MAX_WIDTH} is expected");
            keys.refuse("moe_intermediate_size", &reason);
        }
    }
    for key in [
        "add_cross_attention",
        "is_encoder_decoder",
        "rope_interleaved",
        "use_mrope",
    ] {
        keys.only(key, &Value::Bool(false));
    }
    keys.refuse_quantised();
}
