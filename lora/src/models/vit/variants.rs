//! timm's variants, with the tags of their weights.

use super::config::VitConfig;
use crate::models::Variant;
use std::sync::LazyLock;

pub(super) static VARIANTS: LazyLock<Vec<Variant<VitConfig>>> = LazyLock::new(|| {
    let [tiny, small, base] = [sized(192, 3), sized(384, 6), sized(768, 12)];
    let large = VitConfig {
        num_hidden_layers: 24,
        ..sized(1024, 16)
    };
    let patches_of_32 = |config: VitConfig| VitConfig {
        patch_size: 32,
        ..config
    };
    let images = "augreg_in21k_ft_in1k augreg_in21k";
    let dinov2 = "lvd142m";
    let clip = "laion2b_ft_in12k_in1k openai_ft_in12k_in1k laion2b_ft_in1k openai_ft_in1k laion2b";
    let deit = "fb_in1k";
    vec![
        Variant::new("vit_tiny_patch16_224", tiny.clone(), images),
        Variant::new("vit_small_patch16_224", small.clone(), images),
        Variant::new(
            "vit_base_patch16_224",
            base.clone(),
            "augreg2_in21k_ft_in1k augreg_in21k_ft_in1k orig_in21k_ft_in1k augreg_in21k",
        ),
        Variant::new("vit_base_patch32_224", patches_of_32(base.clone()), images),
        Variant::new("vit_large_patch16_224", large.clone(), images),
        Variant::new("deit_tiny_patch16_224", tiny.clone(), deit),
        Variant::new("deit_small_patch16_224", small.clone(), deit),
        Variant::new("deit_base_patch16_224", base.clone(), deit),
        Variant::new("deit_tiny_distilled_patch16_224", distilled(tiny), deit),
        Variant::new(
            "deit_small_distilled_patch16_224",
            distilled(small.clone()),
            deit,
        ),
        Variant::new(
            "deit_base_distilled_patch16_224",
            distilled(base.clone()),
            deit,
        ),
        Variant::new("vit_small_patch14_dinov2", of_dinov2(small), dinov2),
        Variant::new("vit_base_patch14_dinov2", of_dinov2(base.clone()), dinov2),
        Variant::new("vit_large_patch14_dinov2", of_dinov2(large), dinov2),
        Variant::new("vit_base_patch16_clip_224", of_clip(base.clone()), clip),
        Variant::new(
            "vit_base_patch32_clip_224",
            of_clip(patches_of_32(base)),
            clip,
        ),
    ]
});

/// `vit_base_patch16_224` in another size.
fn sized(hidden_size: usize, num_attention_heads: usize) -> VitConfig {
    VitConfig {
        hidden_size,
        intermediate_size: 4 * hidden_size,
        num_attention_heads,
        ..VitConfig::timm()
    }
}

fn distilled(config: VitConfig) -> VitConfig {
    VitConfig {
        distillation_token: true,
        distilled_head: true,
        ..config
    }
}

fn of_dinov2(config: VitConfig) -> VitConfig {
    VitConfig {
        image_size: 518,
        patch_size: 14,
        layer_scale: Some(1e-5),
        labels: Vec::new(),
        ..config
    }
}

fn of_clip(config: VitConfig) -> VitConfig {
    VitConfig {
        layer_norm_eps: 1e-5,
        pre_norm: true,
        patch_bias: false,
        ..config
    }
}
