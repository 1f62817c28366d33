//! The families: transformers' defaults, and what each has that others have not.

use super::parse::{Layers, every_layer, window_of_all};
use super::{Biases, DecoderConfig, ExpertsConfig, NormPlacement, QkNorm};
use crate::models::keys::Keys;
use serde_json::Value;

/// A family of decoders, with transformers' defaults for it.
pub(super) struct Family {
    /// The `model_type`.
    pub(super) name: &'static str,
    /// What stands before `ForCausalLM` in the name of its class.
    pub(super) class: &'static str,
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    /// As many as query heads, if `None`.
    pub(super) num_key_value_heads: Option<usize>,
    /// The hidden size divided among the heads, if `None`.
    pub(super) head_dim: Option<usize>,
    pub(super) max_position_embeddings: usize,
    pub(super) rms_norm_eps: f64,
    pub(super) tie_word_embeddings: bool,
    pub(super) rope_theta: f64,
    /// Reads what only this family has.
    pub(super) own: fn(&mut DecoderConfig, &Keys<'_>) -> Layers,
}

/// Llama, from which the others differ.
const LLAMA: Family = Family {
    name: "llama",
    class: "Llama",
    vocab_size: 32000,
    hidden_size: 4096,
    intermediate_size: 11008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: false,
    rope_theta: 1e4,
    own: llama,
};

const GEMMA: Family = Family {
    name: "gemma",
    class: "Gemma",
    vocab_size: 256_000,
    hidden_size: 3072,
    intermediate_size: 24576,
    num_hidden_layers: 28,
    num_attention_heads: 16,
    num_key_value_heads: Some(16),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    own: gemma,
    ..LLAMA
};

const GEMMA2: Family = Family {
    name: "gemma2",
    class: "Gemma2",
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 26,
    num_attention_heads: 8,
    num_key_value_heads: Some(4),
    own: gemma2,
    ..GEMMA
};

const QWEN2: Family = Family {
    name: "qwen2",
    class: "Qwen2",
    vocab_size: 151_936,
    intermediate_size: 22016,
    num_key_value_heads: Some(32),
    max_position_embeddings: 32768,
    own: qwen2,
    ..LLAMA
};

const MISTRAL: Family = Family {
    name: "mistral",
    class: "Mistral",
    intermediate_size: 14336,
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    own: mistral,
    ..LLAMA
};

pub(super) static FAMILIES: [Family; 13] = [
    LLAMA,
    MISTRAL,
    QWEN2,
    Family {
        name: "qwen3",
        class: "Qwen3",
        head_dim: Some(128),
        own: qwen3,
        ..QWEN2
    },
    Family {
        name: "smollm3",
        class: "SmolLM3",
        vocab_size: 128_256,
        hidden_size: 2048,
        num_hidden_layers: 36,
        num_attention_heads: 16,
        num_key_value_heads: Some(4),
        max_position_embeddings: 32768,
        tie_word_embeddings: true,
        rope_theta: 2e6,
        own: smollm3,
        ..LLAMA
    },
    GEMMA,
    GEMMA2,
    Family {
        name: "gemma3_text",
        class: "Gemma3",
        vocab_size: 262_208,
        max_position_embeddings: 131_072,
        rope_theta: 1e6,
        own: gemma3,
        ..GEMMA2
    },
    Family {
        name: "phi3",
        class: "Phi3",
        vocab_size: 32064,
        hidden_size: 3072,
        intermediate_size: 8192,
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        own: phi3,
        ..LLAMA
    },
    Family {
        name: "olmo2",
        class: "Olmo2",
        vocab_size: 50304,
        rms_norm_eps: 1e-5,
        own: olmo2,
        ..LLAMA
    },
    Family {
        name: "granite",
        class: "Granite",
        own: granite,
        ..LLAMA
    },
    Family {
        name: "mixtral",
        class: "Mixtral",
        rms_norm_eps: 1e-5,
        rope_theta: 1e6,
        own: mixtral,
        ..MISTRAL
    },
    Family {
        name: "qwen3_moe",
        class: "Qwen3Moe",
        hidden_size: 2048,
        intermediate_size: 6144,
        num_hidden_layers: 24,
        num_key_value_heads: Some(4),
        own: qwen3_moe,
        ..QWEN2
    },
];

/// The one setting for all biases of the attention.
fn attention_bias(config: &mut DecoderConfig, keys: &Keys<'_>) {
    let bias = keys.get("attention_bias", false);
    config.biases.qkv = bias;
    config.biases.output = bias;
}

fn llama(config: &mut DecoderConfig, keys: &Keys<'_>) -> Layers {
    attention_bias(config, keys);
    config.biases.mlp = keys.get("mlp_bias", false);
    window_of_all(None)
}

fn mistral(_: &mut DecoderConfig, keys: &Keys<'_>) -> Layers {
    window_of_all(keys.nullable("sliding_window", Some(4096)))
}

/// The window of Qwen's models, which has a switch of its own.
fn switched_window(keys: &Keys<'_>, default: Option<usize>) -> Option<usize> {
    let on = keys.get("use_sliding_window", false);
    keys.nullable("sliding_window", default).filter(|_| on)
}

/// The layers from `max_window_layers` on have the window, unless `layer_types` says more.
fn last_layers_slide(keys: &Keys<'_>) -> Layers {
    let first = keys.get("max_window_layers", 28);
    let window = switched_window(keys, Some(4096));
    every_layer(window, move |layer| window.is_some() && layer >= first)
}

fn qwen2(config: &mut DecoderConfig, keys: &Keys<'_>) -> Layers {
    config.biases = Biases {
        qkv: true,
        ..Biases::default()
    };
    last_layers_slide(keys)
}

fn qwen3(config: &mut DecoderConfig, keys: &Keys<'_>) -> Layers {
    attention_bias(config, keys);
    config.qk_norm = Some(QkNorm::Head);
    last_layers_slide(keys)
}

fn smollm3(config: &mut DecoderConfig, keys: &Keys<'_>) -> Layers {
    attention_bias(config, keys);
    config.biases.mlp = keys.get("mlp_bias", false);
    let interval: usize = keys.get("no_rope_layer_interval", 4);
    if interval == 0 {
        keys.refuse("no_rope_layer_interval", "a number above 0 is expected");
    }
    let listed: Option<Vec<u8>> = keys.find("no_rope_layers");
    if listed
        .as_ref()
        .is_some_and(|listed| listed.len() < config.layers.len())
    {
        let expected = format!(
            "{} numbers are expected, one for each layer",
            config.layers.len()
        );
        keys.refuse("no_rope_layers", &expected);
    }
    // In spite of the key's name, 1 is for a layer with a rope.
    let turns = move |layer: usize| match &listed {
        Some(listed) => listed.get(layer) != Some(&0),
        None => !(layer + 1).is_multiple_of(interval.max(1)),
    };
    for (index, layer) in config.layers.iter_mut().enumerate() {
        layer.rope = turns(index).then_some(0);
    }
    let window = switched_window(keys, None);
    every_layer(window, move |layer| window.is_some() && !turns(layer))
}

fn gemma(config: &mut DecoderConfig, keys: &Keys<'_>) -> Layers {
    attention_bias(config, keys);
    config.norms_add_one = true;
    config.embedding_multiplier = (config.hidden_size as f64).sqrt();
    keys.only("use_bidirectional_attention", &Value::Bool(false));
    window_of_all(None)
}

/// What Gemma 2 and 3 have in common.
fn later_gemma(config: &mut DecoderConfig, keys: &Keys<'_>, caps: [Option<f64>; 2]) {
    gemma(config, keys);
    config.norms = NormPlacement::Around;
    let scalar: f64 = keys.get("query_pre_attn_scalar", 256.0);
    if scalar <= 0.0 {
        keys.refuse("query_pre_attn_scalar", "a number above 0 is expected");
    }
    config.attention_multiplier = scalar.powf(-0.5);
    let [attention, last] = caps;
    config.attn_logit_softcapping = keys.nullable("attn_logit_softcapping", attention);
    config.final_logit_softcapping = keys.nullable("final_logit_softcapping", last);
}

fn gemma2(config: &mut DecoderConfig, keys: &Keys<'_>) -> Layers {
    later_gemma(config, keys, [Some(50.0), Some(30.0)]);
    let window = keys.nullable("sliding_window", Some(4096));
    every_layer(window, |layer| layer.is_multiple_of(2))
}

fn gemma3(config: &mut DecoderConfig, keys: &Keys<'_>) -> Layers {
    later_gemma(config, keys, [None, None]);
    config.qk_norm = Some(QkNorm::Head);
    // transformers 5 reads this cap and does not apply it.
    if config.attn_logit_softcapping.is_some() {
        keys.refuse("attn_logit_softcapping", "Gemma 3 has no such cap");
    }
    let pattern: usize = keys.get("sliding_window_pattern", 6);
    if pattern == 0 {
        keys.refuse("sliding_window_pattern", "a number above 0 is expected");
    }
    let window = keys.nullable("sliding_window", Some(4096));
    every_layer(window, move |layer| {
        !(layer + 1).is_multiple_of(pattern.max(1))
    })
}

fn phi3(config: &mut DecoderConfig, keys: &Keys<'_>) -> Layers {
    config.joined = true;
    window_of_all(keys.nullable("sliding_window", None))
}

fn olmo2(config: &mut DecoderConfig, keys: &Keys<'_>) -> Layers {
    attention_bias(config, keys);
    config.norms = NormPlacement::Behind;
    config.qk_norm = Some(QkNorm::Width);
    window_of_all(None)
}

fn granite(config: &mut DecoderConfig, keys: &Keys<'_>) -> Layers {
    attention_bias(config, keys);
    config.biases.mlp = keys.get("mlp_bias", false);
    config.embedding_multiplier = keys.get("embedding_multiplier", 1.0);
    config.residual_multiplier = keys.get("residual_multiplier", 1.0);
    config.attention_multiplier = keys.get("attention_multiplier", 1.0);
    config.logits_scaling = keys.get("logits_scaling", 1.0);
    if config.logits_scaling == 0.0 {
        keys.refuse("logits_scaling", "logits cannot be divided by 0");
    }
    window_of_all(None)
}

fn mixtral(config: &mut DecoderConfig, keys: &Keys<'_>) -> Layers {
    let count = keys.find("num_local_experts").or(keys.find("num_experts"));
    config.experts = Some(ExpertsConfig {
        count: count.unwrap_or(8),
        per_token: keys.get("num_experts_per_tok", 2),
        intermediate_size: config.intermediate_size,
        norm_topk_prob: true,
        mixtral_names: true,
    });
    for layer in &mut config.layers {
        layer.experts = true;
    }
    window_of_all(keys.nullable("sliding_window", None))
}

fn qwen3_moe(config: &mut DecoderConfig, keys: &Keys<'_>) -> Layers {
    attention_bias(config, keys);
    config.qk_norm = Some(QkNorm::Head);
    let count = keys.find("num_experts").or(keys.find("num_local_experts"));
    let experts = ExpertsConfig {
        count: count.unwrap_or(128),
        per_token: keys.get("num_experts_per_tok", 8),
        intermediate_size: keys.get("moe_intermediate_size", 768),
        norm_topk_prob: keys.get("norm_topk_prob", false),
        mixtral_names: false,
    };
    let step: usize = keys.get("decoder_sparse_step", 1);
    if step == 0 {
        keys.refuse("decoder_sparse_step", "a number above 0 is expected");
    }
    let dense: Vec<usize> = keys.get("mlp_only_layers", Vec::new());
    for (index, layer) in config.layers.iter_mut().enumerate() {
        let turn = (index + 1).is_multiple_of(step.max(1));
        layer.experts = turn && experts.count > 0 && !dense.contains(&index);
    }
    let any = config.layers.iter().any(|layer| layer.experts);
    config.experts = any.then_some(experts);
    window_of_all(switched_window(keys, Some(4096)))
}
