//! Configurations: what is read, and what is refused.

use candle_nn::Activation;
use lora::models::vit::{VitAct, VitConfig, VitPool};

fn of(kind: &str, more: &str) -> Result<VitConfig, String> {
    let json = format!(r#"{{"model_type": "{kind}"{more}}}"#);
    serde_json::from_str(&json).map_err(|error| error.to_string())
}

#[test]
fn defaults_are_those_of_transformers() {
    let gelu = VitAct::Plain(Activation::Gelu);
    let tanh = VitAct::Plain(Activation::GeluPytorchTanh);
    for (kind, patch, eps, act, class, pool) in [
        ("vit", 16, 1e-12, gelu, true, VitPool::Class),
        ("deit", 16, 1e-12, gelu, true, VitPool::Class),
        ("dinov2", 14, 1e-6, gelu, true, VitPool::Class),
        (
            "clip_vision_model",
            32,
            1e-5,
            VitAct::QuickGelu,
            true,
            VitPool::Class,
        ),
        ("clip", 32, 1e-5, VitAct::QuickGelu, true, VitPool::Class),
        (
            "siglip_vision_model",
            16,
            1e-6,
            tanh,
            false,
            VitPool::Attention,
        ),
        ("siglip", 16, 1e-6, tanh, false, VitPool::Attention),
    ] {
        let config = of(kind, "").unwrap();
        let found = (
            config.patch_size,
            config.layer_norm_eps,
            config.hidden_act,
            config.class_token,
            config.pool,
        );
        assert_eq!(found, (patch, eps, act, class, pool), "{kind}");
        assert_eq!((config.hidden_size, config.intermediate_size), (768, 3072));
        assert_eq!((config.model_type.as_str(), config.image_size), (kind, 224));
        assert!(config.labels.is_empty());
        assert!(
            config.without_effect.is_empty(),
            "{:?}",
            config.without_effect
        );
    }
    assert_eq!(of("clip", "").unwrap().projection, Some(512));
    assert_eq!(of("clip_vision_model", "").unwrap().projection, None);
}

#[test]
fn stochastic_depth_and_unknown_keys_are_reported() {
    let config = of(
        "vit",
        r#", "drop_path_rate": 0.1, "some_tool": 1, "patch_size": [8, 8]"#,
    );
    let config = config.unwrap();
    assert_eq!(config.patch_size, 8);
    assert_eq!(
        config.without_effect,
        [
            "`drop_path_rate` is 0.1: training has no such dropout here",
            "`some_tool` is no setting of this family"
        ]
    );
}

#[test]
fn what_would_change_the_result_is_refused() {
    for (kind, setting, problem) in [
        (
            "dinov2",
            r#""use_swiglu_ffn": true"#,
            "`use_swiglu_ffn` is true: only false is supported",
        ),
        (
            "vit",
            r#""hidden_act": "tanh""#,
            r#"`hidden_act` is "tanh": supported are gelu, gelu_pytorch_tanh, quick_gelu, relu, silu"#,
        ),
        (
            "vit",
            r#""image_size": [224, 192]"#,
            "`image_size` is [224,192]: a number above 0 is expected, one for both sides",
        ),
        (
            "vit",
            r#""patch_size": 300"#,
            "`patch_size` is 300: an image of side 224 has no such patch",
        ),
        (
            "siglip_vision_model",
            r#""vision_use_head": false"#,
            "`vision_use_head` is false: only true is supported",
        ),
        (
            "deit",
            r#""num_attention_heads": 5"#,
            "`num_attention_heads` is 5: it must divide the width of 768 (`hidden_size`)",
        ),
        (
            "clip",
            r#""vision_config": {"hidden_act": "mish"}"#,
            r#"`hidden_act` is "mish": supported are gelu, gelu_pytorch_tanh, quick_gelu, relu, silu"#,
        ),
    ] {
        assert_eq!(of(kind, &format!(", {setting}")).unwrap_err(), problem);
    }
    assert_eq!(
        of("beit", "").unwrap_err(),
        "`model_type` is \"beit\": models of images are vit, deit, dinov2, clip_vision_model, clip, \
         siglip_vision_model, siglip"
    );
}
