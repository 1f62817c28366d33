//! Configurations: what is read, and what is refused.

use super::{CASES, folder};
use candle_nn::Activation;
use lora::models::decoder::{Decoder, DecoderConfig, RopeScaling};
use lora::models::parameter_shapes;
use serde_json::{Map, Value, json};

fn parse(json: &str) -> Result<DecoderConfig, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// A Llama with more settings.
fn llama(more: &str) -> Result<DecoderConfig, String> {
    parse(&format!(
        r#"{{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2{more}}}"#
    ))
}

#[test]
fn defaults_are_those_of_transformers() {
    for (kind, width, head_dim, kv_heads, layers, theta, tied) in [
        ("llama", 4096, 128, 32, 32, 1e4, false),
        ("mistral", 4096, 128, 8, 32, 1e4, false),
        ("qwen2", 4096, 128, 32, 32, 1e4, false),
        ("qwen3", 4096, 128, 32, 32, 1e4, false),
        ("smollm3", 2048, 128, 4, 36, 2e6, true),
        ("gemma", 3072, 256, 16, 28, 1e4, true),
        ("gemma2", 2304, 256, 4, 26, 1e4, true),
        ("gemma3_text", 2304, 256, 4, 26, 1e6, true),
        ("phi3", 3072, 96, 32, 32, 1e4, false),
        ("olmo2", 4096, 128, 32, 32, 1e4, false),
        ("granite", 4096, 128, 32, 32, 1e4, false),
        ("mixtral", 4096, 128, 8, 32, 1e6, false),
        ("qwen3_moe", 2048, 64, 4, 24, 1e4, false),
    ] {
        let config = parse(&format!(r#"{{"model_type": "{kind}"}}"#)).unwrap();
        let found = (
            config.hidden_size,
            config.head_dim,
            config.num_key_value_heads,
            config.layers.len(),
            config.ropes[0].theta,
            config.tie_word_embeddings,
        );
        assert_eq!(
            found,
            (width, head_dim, kv_heads, layers, theta, tied),
            "{kind}"
        );
        assert_eq!(config.model_type, kind);
        assert!(config.without_effect.is_empty(), "{kind}");
    }
    let gemma3 = parse(r#"{"model_type": "gemma3_text"}"#).unwrap();
    assert_eq!(gemma3.ropes[1].theta, 1e4);
    assert_eq!(
        (gemma3.layers[0].window, gemma3.layers[0].rope),
        (Some(4096), Some(1))
    );
    assert_eq!(
        (gemma3.layers[5].window, gemma3.layers[5].rope),
        (None, Some(0))
    );
    assert_eq!(gemma3.hidden_act, Activation::GeluPytorchTanh);
    assert_eq!(gemma3.attention_multiplier, 1.0 / 16.0);
    let granite = parse(r#"{"model_type": "granite"}"#).unwrap();
    assert_eq!(granite.attention_multiplier, 1.0);
    // Gemma's first files call their activation by the wrong name.
    let gemma = parse(r#"{"model_type": "gemma", "hidden_act": "gelu"}"#).unwrap();
    assert_eq!(gemma.hidden_act, Activation::GeluPytorchTanh);
}

#[test]
fn the_class_tells_where_the_type_is_missing() {
    let config = parse(r#"{"architectures": ["Qwen3MoeForCausalLM"]}"#).unwrap();
    assert_eq!(config.model_type, "qwen3_moe");
    let error = parse("{}").unwrap_err();
    assert!(
        error.starts_with("`model_type` is missing: decoders are llama, mistral,"),
        "{error}"
    );
    let error = parse(r#"{"model_type": "bert"}"#).unwrap_err();
    assert!(
        error.starts_with("`model_type` is \"bert\": decoders are llama,"),
        "{error}"
    );
}

/// Both spellings of a rope give the same.
#[test]
fn ropes_have_two_spellings() {
    let older = llama(
        r#", "rope_theta": 500000, "rope_scaling": {"rope_type": "llama3", "factor": 8,
            "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}"#,
    )
    .unwrap();
    let newer = llama(
        r#", "rope_parameters": {"rope_theta": 500000, "rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#,
    )
    .unwrap();
    assert_eq!(older, newer);
    assert_eq!(
        older.ropes[0].scaling,
        RopeScaling::Llama3 {
            factor: 8.0,
            original: 8192,
            borders: [1.0, 4.0]
        }
    );
    let linear = llama(r#", "rope_scaling": {"type": "linear", "factor": 2}"#).unwrap();
    assert_eq!(linear.ropes[0].scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn harmless_keys_pass_and_others_are_reported() {
    let config = llama(
        r#", "torch_dtype": "bfloat16", "transformers_version": "4.40", "use_cache": true,
            "eos_token_id": [1, 2], "architectures": ["LlamaForCausalLM"], "rope_scaling": null,
            "head_dim": null, "num_key_value_heads": null, "attention_dropout": 0.1,
            "some_tool": {"version": 3}"#,
    )
    .unwrap();
    assert_eq!(config.attention_dropout, 0.1);
    assert_eq!((config.head_dim, config.num_key_value_heads), (16, 4));
    assert_eq!(
        config.without_effect,
        ["`some_tool` is no setting of this family"]
    );
}

#[test]
fn what_would_change_the_result_is_refused() {
    for (more, expected) in [
        (
            r#", "hidden_act": "quick_gelu""#,
            "`hidden_act` is \"quick_gelu\": supported are silu, gelu, gelu_pytorch_tanh, relu",
        ),
        (
            r#", "rope_scaling": {"rope_type": "proportional", "factor": 2}"#,
            "`rope_scaling.rope_type` is \"proportional\": supported are default, linear, dynamic, yarn, \
             llama3, longrope\n`rope_scaling.factor` is 2: no such setting is known here",
        ),
        (
            r#", "rope_scaling": {"type": "linear"}"#,
            "`rope_scaling.factor` is missing",
        ),
        (
            r#", "rope_scaling": {"type": "linear", "factor": 0}"#,
            "`rope_scaling.factor` is 0: a number above 0 is expected",
        ),
        (
            r#", "rope_scaling": {"type": "linear", "factor": "2"}"#,
            "`rope_scaling.factor` is \"2\": invalid type: string \"2\", expected f64",
        ),
        (
            r#", "rope_scaling": 2"#,
            "`rope_scaling` is 2: an object is expected",
        ),
        (
            r#", "rope_parameters": {"full_attention": {"rope_theta": 5.0}}"#,
            "`rope_parameters.full_attention` is {\"rope_theta\":5.0}: no such setting is known here",
        ),
        (
            r#", "rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}"#,
            "`rope_scaling.short_factor` is [1]: 8 positive numbers are expected\n\
             `rope_scaling.long_factor` is [1]: 8 positive numbers are expected",
        ),
        (
            r#", "partial_rotary_factor": 0.5"#,
            "`partial_rotary_factor` is 0.5: only Phi-3 turns a part of a head",
        ),
        (
            r#", "head_dim": 7"#,
            "`head_dim` is 7: heads of 7 numbers cannot turn in pairs",
        ),
        (
            r#", "rope_theta": 0"#,
            "`rope_theta` is 0: a number above 1 is expected",
        ),
        (
            r#", "num_key_value_heads": 3"#,
            "`num_key_value_heads` is 3: it must divide the 4 query heads (num_attention_heads)",
        ),
        (
            r#", "num_key_value_heads": 0"#,
            "`num_key_value_heads` is 0: a number from 1 to 1048576 is expected",
        ),
        (
            r#", "vocab_size": 18446744073709551615"#,
            "`vocab_size` is 18446744073709551615: a number from 1 to 1073741824 is expected",
        ),
        (
            r#", "vocab_size": -1"#,
            "`vocab_size` is -1: invalid value: integer `-1`, expected usize",
        ),
        (
            r#", "layer_types": ["full_attention", "sliding_attention"]"#,
            "`layer_types` is [\"full_attention\",\"sliding_attention\"]: llama has one type of attention \
             for all layers",
        ),
        (
            r#", "quantization_config": {"quant_method": "gptq"}"#,
            "`quantization_config` is {\"quant_method\":\"gptq\"}: dequantise the checkpoint first",
        ),
        (
            r#", "is_encoder_decoder": true"#,
            "`is_encoder_decoder` is true: only false is supported",
        ),
    ] {
        let error = llama(more).unwrap_err();
        assert_eq!(error, expected, "{more}");
    }
}

#[test]
fn families_refuse_what_they_cannot() {
    for (json, expected) in [
        (
            r#"{"model_type": "gemma2", "use_bidirectional_attention": true}"#,
            "`use_bidirectional_attention` is true: only false is supported",
        ),
        (
            r#"{"model_type": "gemma2", "attn_logit_softcapping": 1.0}"#,
            "`attn_logit_softcapping` is 1.0: the attention takes 1 for no cap",
        ),
        (
            r#"{"model_type": "gemma2", "final_logit_softcapping": -2}"#,
            "`final_logit_softcapping` is -2: a number above 0 is expected",
        ),
        (
            r#"{"model_type": "llama", "rms_norm_eps": -1e-6}"#,
            "`rms_norm_eps` is -1e-6: a number of at least 0 is expected",
        ),
        (
            r#"{"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_theta": 1e5}}"#,
            "`rope_scaling` is {\"type\":\"linear\",\"factor\":2.0}: rope_parameters is given, too: only one of \
             both can say",
        ),
        (
            r#"{"model_type": "gemma2", "sliding_window": null}"#,
            "`sliding_window` is null: layers with sliding attention need a window",
        ),
        (
            r#"{"model_type": "gemma2", "num_hidden_layers": 1, "layer_types": ["chunked_attention"]}"#,
            "`layer_types` is [\"chunked_attention\"]: supported are full_attention and sliding_attention",
        ),
        (
            r#"{"model_type": "gemma2", "num_hidden_layers": 2, "layer_types": ["full_attention"]}"#,
            "`layer_types` is [\"full_attention\"]: 2 types are expected, one for each layer",
        ),
        (
            r#"{"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}"#,
            "`attn_logit_softcapping` is 50.0: Gemma 3 has no such cap",
        ),
        (
            r#"{"model_type": "smollm3", "no_rope_layers": [1]}"#,
            "`no_rope_layers` is [1]: 36 numbers are expected, one for each layer",
        ),
        (
            r#"{"model_type": "smollm3", "no_rope_layer_interval": 0}"#,
            "`no_rope_layer_interval` is 0: a number above 0 is expected",
        ),
        (
            r#"{"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3}"#,
            "`num_experts_per_tok` is 3: a token has 1 to all 2 experts",
        ),
        (
            r#"{"model_type": "qwen3_moe", "decoder_sparse_step": 0}"#,
            "`decoder_sparse_step` is 0: a number above 0 is expected",
        ),
        (
            r#"{"model_type": "granite", "logits_scaling": 0}"#,
            "`logits_scaling` is 0: logits cannot be divided by 0",
        ),
        (
            r#"{"model_type": "phi3", "partial_rotary_factor": 1.5}"#,
            "`partial_rotary_factor` is 1.5: 144 of the 96 numbers of a head would turn, an even number can",
        ),
    ] {
        assert_eq!(parse(json).unwrap_err(), expected, "{json}");
    }
}

/// Configurations as they are published: nothing to report, and what they mean.
#[test]
fn published_ones_are_read() {
    let smollm2 = parse(
        r#"{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
            "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576,
            "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": true,
            "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama",
            "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
            "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null,
            "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "transformers_version": "4.40.1", "use_cache": true, "vocab_size": 49152}"#,
    )
    .unwrap();
    assert_eq!((smollm2.head_dim, smollm2.layers.len()), (64, 30));
    assert_eq!((smollm2.rms_norm_eps, smollm2.ropes[0].theta), (1e-5, 1e5));
    let shapes = parameter_shapes::<Decoder>(&smollm2).unwrap();
    let count: usize = shapes.values().map(|shape| shape.elem_count()).sum();
    assert_eq!(count, 134_515_008);

    let qwen = parse(
        r#"{"architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
            "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128,
            "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
            "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
            "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
            "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
            "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
            "output_router_logits": false, "rms_norm_eps": 1e-06, "rope_scaling": null,
            "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": null,
            "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
            "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}"#,
    )
    .unwrap();
    let experts = qwen.experts.as_ref().unwrap();
    assert_eq!(
        (experts.count, experts.per_token, experts.intermediate_size),
        (128, 8, 768)
    );
    assert!(
        qwen.layers
            .iter()
            .all(|layer| layer.experts && layer.window.is_none())
    );

    let phi = parse(
        r#"{"architectures": ["Phi3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
            "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1,
            "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
            "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 4096,
            "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "pad_token_id": 32000,
            "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0,
            "sliding_window": 2047, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
            "transformers_version": "4.40.2", "use_cache": true, "vocab_size": 32064}"#,
    )
    .unwrap();
    assert!(phi.layers.iter().all(|layer| layer.window == Some(2047)));

    let gemma = parse(
        r#"{"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
            "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid",
            "eos_token_id": [1, 106], "final_logit_softcapping": null, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02,
            "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
            "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
            "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000,
            "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
            "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262144}"#,
    )
    .unwrap();
    let shapes = parameter_shapes::<Decoder>(&gemma).unwrap();
    let count: usize = shapes.values().map(|shape| shape.elem_count()).sum();
    assert_eq!(count, 999_885_952);
    for config in [smollm2, qwen, phi, gemma] {
        assert!(
            config.without_effect.is_empty(),
            "{:?}",
            config.without_effect
        );
    }
}

/// No value of any key makes the reader or the model's shapes panic.
#[test]
fn no_value_panics() {
    let values = [
        json!(null),
        json!(-1),
        json!(0),
        json!(1),
        json!(3),
        json!(0.5),
        json!(1e300),
        json!(u64::MAX),
        json!("x"),
        json!(["x", 1, null]),
        json!({"rope_type": "yarn", "factor": 0.0}),
        json!({"full_attention": null, "type": "longrope"}),
        json!(true),
    ];
    let (mut read, mut refused) = (0, 0);
    for case in CASES {
        let config = std::fs::read(folder(case).join("config.json")).unwrap();
        let config: Map<String, Value> = serde_json::from_slice(&config).unwrap();
        let mut check = |config: Map<String, Value>| match serde_json::from_value::<DecoderConfig>(
            Value::Object(config),
        ) {
            Ok(config) => {
                parameter_shapes::<Decoder>(&config).unwrap();
                read += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        };
        for key in config.keys() {
            for value in &values {
                let mut changed = config.clone();
                changed.insert(key.clone(), value.clone());
                check(changed);
                if let Some(Value::Object(inner)) = config.get(key) {
                    for inner_key in inner.keys() {
                        let mut inner = inner.clone();
                        inner.insert(inner_key.clone(), value.clone());
                        let mut changed = config.clone();
                        changed.insert(key.clone(), Value::Object(inner));
                        check(changed);
                    }
                }
            }
        }
    }
    assert!(
        read > 1000 && refused > 1000,
        "{read} read, {refused} refused"
    );
}
