//! timm's variants and their pretrained weights.

use super::config::{ActLayer, ConvNextConfig, NormLayer, StemType};
use crate::models::Variant;

/// Blocks and channels of the four stages.
type Size = ([usize; 4], [usize; 4]);

const ZEPTO: Size = ([2, 2, 4, 2], [32, 64, 128, 256]);
const ATTO: Size = ([2, 2, 6, 2], [40, 80, 160, 320]);
const FEMTO: Size = ([2, 2, 6, 2], [48, 96, 192, 384]);
const PICO: Size = ([2, 2, 6, 2], [64, 128, 256, 512]);
const NANO: Size = ([2, 2, 8, 2], [80, 160, 320, 640]);
const TINY: Size = ([3, 3, 9, 3], [96, 192, 384, 768]);
const SMALL: Size = ([3, 3, 27, 3], [96, 192, 384, 768]);
const BASE: Size = ([3, 3, 27, 3], [128, 256, 512, 1024]);
const LARGE: Size = ([3, 3, 27, 3], [192, 384, 768, 1536]);
const XLARGE: Size = ([3, 3, 27, 3], [256, 512, 1024, 2048]);
const HUGE: Size = ([3, 3, 27, 3], [352, 704, 1408, 2816]);
const XXLARGE: Size = ([3, 4, 30, 3], [384, 768, 1536, 3072]);
const TEST_CONVNEXT: Size = ([1, 2, 4, 2], [24, 32, 48, 64]);
const TEST_CONVNEXT2: Size = ([1, 1, 1, 1], [32, 64, 96, 128]);

/// A ConvNeXt with linear layers in its MLPs.
const fn v1((depths, dims): Size) -> ConvNextConfig {
    ConvNextConfig {
        depths,
        dims,
        ..ConvNextConfig::TINY
    }
}

/// A ConvNeXt with convolutions in its MLPs.
const fn v1_conv(size: Size) -> ConvNextConfig {
    ConvNextConfig {
        conv_mlp: true,
        ..v1(size)
    }
}

/// A ConvNeXt V2: global response normalisation, no factor on the branches.
const fn v2(config: ConvNextConfig) -> ConvNextConfig {
    ConvNextConfig {
        use_grn: true,
        ls_init_value: None,
        ..config
    }
}

const fn stem(stem_type: StemType, config: ConvNextConfig) -> ConvNextConfig {
    ConvNextConfig {
        stem_type,
        ..config
    }
}

const fn norm(norm_layer: NormLayer, config: ConvNextConfig) -> ConvNextConfig {
    ConvNextConfig {
        norm_layer,
        ..config
    }
}

/// The test models have another activation, and a larger epsilon.
const fn test(act_layer: ActLayer, size: Size) -> ConvNextConfig {
    ConvNextConfig {
        act_layer,
        norm_eps: 1e-5,
        ..v1(size)
    }
}

/// `tags` are separated by spaces; the first is timm's default.
const fn variant(
    name: &'static str,
    config: ConvNextConfig,
    tags: &'static str,
) -> Variant<ConvNextConfig> {
    Variant { name, config, tags }
}

pub(super) static VARIANTS: &[Variant<ConvNextConfig>] = &[
    variant("convnext_atto", v1_conv(ATTO), "d2_in1k"),
    variant(
        "convnext_atto_ols",
        stem(StemType::OverlapTiered, v1_conv(ATTO)),
        "a2_in1k",
    ),
    variant("convnext_atto_rms", norm(NormLayer::Rms, v1_conv(ATTO)), ""),
    variant(
        "convnext_base",
        v1(BASE),
        "fb_in22k_ft_in1k clip_laion2b clip_laion2b_augreg clip_laion2b_augreg_ft_in1k \
         clip_laion2b_augreg_ft_in12k clip_laion2b_augreg_ft_in12k_in1k \
         clip_laion2b_augreg_ft_in12k_in1k_384 clip_laiona clip_laiona_320 \
         clip_laiona_augreg_320 clip_laiona_augreg_ft_in1k_384 dinov3_lvd1689m eupe_lvd1689m \
         fb_in1k fb_in22k fb_in22k_ft_in1k_384",
    ),
    variant("convnext_femto", v1_conv(FEMTO), "d1_in1k"),
    variant(
        "convnext_femto_ols",
        stem(StemType::OverlapTiered, v1_conv(FEMTO)),
        "d1_in1k",
    ),
    variant(
        "convnext_large",
        v1(LARGE),
        "fb_in22k_ft_in1k dinov3_lvd1689m fb_in1k fb_in22k fb_in22k_ft_in1k_384",
    ),
    variant(
        "convnext_large_mlp",
        ConvNextConfig {
            head_hidden_size: Some(1536),
            ..v1(LARGE)
        },
        "clip_laion2b_soup_ft_in12k_in1k_320 clip_laion2b_augreg clip_laion2b_augreg_ft_in1k \
         clip_laion2b_augreg_ft_in1k_384 clip_laion2b_augreg_ft_in12k_384 clip_laion2b_ft_320 \
         clip_laion2b_ft_soup_320 clip_laion2b_soup_ft_in12k_320 \
         clip_laion2b_soup_ft_in12k_384 clip_laion2b_soup_ft_in12k_in1k_384",
    ),
    variant(
        "convnext_nano",
        v1_conv(NANO),
        "in12k_ft_in1k d1h_in1k in12k r384_ad_in12k r384_in12k r384_in12k_ft_in1k",
    ),
    variant(
        "convnext_nano_ols",
        stem(StemType::Overlap, v1_conv(NANO)),
        "d1h_in1k",
    ),
    variant("convnext_pico", v1_conv(PICO), "d1_in1k"),
    variant(
        "convnext_pico_ols",
        stem(StemType::OverlapTiered, v1_conv(PICO)),
        "d1_in1k",
    ),
    variant(
        "convnext_small",
        v1(SMALL),
        "in12k_ft_in1k dinov3_lvd1689m eupe_lvd1689m fb_in1k fb_in22k fb_in22k_ft_in1k \
         fb_in22k_ft_in1k_384 in12k in12k_ft_in1k_384",
    ),
    variant(
        "convnext_tiny",
        v1(TINY),
        "in12k_ft_in1k dinov3_lvd1689m eupe_lvd1689m fb_in1k fb_in22k fb_in22k_ft_in1k \
         fb_in22k_ft_in1k_384 in12k in12k_ft_in1k_384",
    ),
    variant(
        "convnext_tiny_hnf",
        ConvNextConfig {
            head_norm_first: true,
            ..v1_conv(TINY)
        },
        "a2h_in1k",
    ),
    variant(
        "convnext_xlarge",
        v1(XLARGE),
        "fb_in22k_ft_in1k fb_in22k fb_in22k_ft_in1k_384",
    ),
    variant(
        "convnext_xxlarge",
        ConvNextConfig {
            norm_eps: 1e-5,
            ..v1(XXLARGE)
        },
        "clip_laion2b_soup_ft_in1k clip_laion2b_rewind clip_laion2b_soup \
         clip_laion2b_soup_ft_in12k",
    ),
    variant(
        "convnext_zepto_rms",
        norm(NormLayer::Simple, v1_conv(ZEPTO)),
        "ra4_e3600_r224_in1k",
    ),
    variant(
        "convnext_zepto_rms_ols",
        norm(
            NormLayer::Simple,
            stem(StemType::OverlapAct, v1_conv(ZEPTO)),
        ),
        "ra4_e3600_r224_in1k",
    ),
    variant("convnextv2_atto", v2(v1_conv(ATTO)), "fcmae_ft_in1k fcmae"),
    variant(
        "convnextv2_base",
        v2(v1(BASE)),
        "fcmae_ft_in22k_in1k fcmae fcmae_ft_in1k fcmae_ft_in22k_in1k_384",
    ),
    variant(
        "convnextv2_femto",
        v2(v1_conv(FEMTO)),
        "fcmae_ft_in1k fcmae",
    ),
    variant(
        "convnextv2_huge",
        v2(v1(HUGE)),
        "fcmae_ft_in22k_in1k_384 fcmae fcmae_ft_in1k fcmae_ft_in22k_in1k_512",
    ),
    variant(
        "convnextv2_large",
        v2(v1(LARGE)),
        "fcmae_ft_in22k_in1k fcmae fcmae_ft_in1k fcmae_ft_in22k_in1k_384",
    ),
    variant(
        "convnextv2_nano",
        v2(v1_conv(NANO)),
        "fcmae_ft_in22k_in1k fcmae fcmae_ft_in1k fcmae_ft_in22k_in1k_384",
    ),
    variant("convnextv2_pico", v2(v1_conv(PICO)), "fcmae_ft_in1k fcmae"),
    variant("convnextv2_small", v2(v1(SMALL)), ""),
    variant(
        "convnextv2_tiny",
        v2(v1(TINY)),
        "fcmae_ft_in22k_in1k fcmae fcmae_ft_in1k fcmae_ft_in22k_in1k_384",
    ),
    variant(
        "test_convnext",
        test(ActLayer::GeluTanh, TEST_CONVNEXT),
        "r160_in1k",
    ),
    variant(
        "test_convnext2",
        test(ActLayer::GeluTanh, TEST_CONVNEXT2),
        "r160_in1k",
    ),
    variant(
        "test_convnext3",
        ConvNextConfig {
            kernel_sizes: [7, 5, 5, 3],
            ..test(ActLayer::Silu, TEST_CONVNEXT2)
        },
        "r160_in1k",
    ),
];
