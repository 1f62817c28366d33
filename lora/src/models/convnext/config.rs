//! What a ConvNeXt looks like.

use candle_core::{Result, bail};
use candle_nn::Activation;
use serde::{Deserialize, Serialize};

/// The architecture of a [`ConvNext`](super::ConvNext), with timm's names and defaults. In JSON it
/// is the `model_args` of a timm `config.json`.
///
/// The default is `convnext_tiny`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConvNextConfig {
    /// Channels of the image.
    pub in_chans: usize,
    /// Classes to tell apart; with 0 the model has no classifier and returns its features.
    pub num_classes: usize,
    /// Blocks in each stage.
    pub depths: [usize; 4],
    /// Channels of each stage.
    pub dims: [usize; 4],
    /// Side of the depthwise kernel in each stage; odd.
    pub kernel_sizes: [usize; 4],
    /// Initial value of the factor on each block's branch; `None` for blocks without one.
    pub ls_init_value: Option<f64>,
    /// How the image is reduced to the first feature map.
    pub stem_type: StemType,
    /// Side of a patch, for [`StemType::Patch`].
    pub patch_size: usize,
    /// Normalise before the features are pooled, not after.
    pub head_norm_first: bool,
    /// Width of a hidden layer in front of the classifier.
    pub head_hidden_size: Option<usize>,
    /// Each block's MLP consists of 1x1 convolutions, not of linear layers.
    pub conv_mlp: bool,
    /// Global response normalisation in each block's MLP: ConvNeXt V2.
    pub use_grn: bool,
    /// Activation in the MLPs.
    pub act_layer: ActLayer,
    /// Normalisation layers.
    pub norm_layer: NormLayer,
    /// What the normalisation layers add to the variance.
    pub norm_eps: f64,
}

/// The first layers of a [`ConvNext`](super::ConvNext).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StemType {
    /// One convolution over patches.
    Patch,
    /// Two convolutions of stride 2.
    Overlap,
    /// As `Overlap`, the first with half the channels.
    OverlapTiered,
    /// As `Overlap`, with an activation between them.
    OverlapAct,
}

/// The activation of a [`ConvNext`](super::ConvNext).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActLayer {
    /// GELU by the error function.
    Gelu,
    /// GELU by the hyperbolic tangent.
    GeluTanh,
    /// x·σ(x).
    Silu,
}

/// The normalisation of a [`ConvNext`](super::ConvNext).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormLayer {
    /// Layer normalisation over the channels.
    #[serde(rename = "layernorm")]
    Layer,
    /// Root-mean-square normalisation over the channels.
    #[serde(rename = "rmsnorm2d")]
    Rms,
    /// Division by the standard deviation over the channels; the mean stays.
    #[serde(rename = "simplenorm")]
    Simple,
}

impl ConvNextConfig {
    /// `convnext_tiny`, from which the variants differ.
    pub(super) const TINY: Self = Self {
        in_chans: 3,
        num_classes: 1000,
        depths: [3, 3, 9, 3],
        dims: [96, 192, 384, 768],
        kernel_sizes: [7; 4],
        ls_init_value: Some(1e-6),
        stem_type: StemType::Patch,
        patch_size: 4,
        head_norm_first: false,
        head_hidden_size: None,
        conv_mlp: false,
        use_grn: false,
        act_layer: ActLayer::Gelu,
        norm_layer: NormLayer::Layer,
        norm_eps: 1e-6,
    };

    /// Checks what the layers do not check.
    pub(super) fn validate(&self) -> Result<()> {
        let sizes = [
            self.in_chans,
            self.patch_size,
            self.head_hidden_size.unwrap_or(1),
        ];
        if self.dims.contains(&0) || sizes.contains(&0) {
            bail!("ConvNextConfig: dims, in_chans, patch_size and head_hidden_size must not be 0");
        }
        if self.kernel_sizes.iter().any(|kernel| kernel % 2 == 0) {
            bail!(
                "ConvNextConfig: kernel_sizes must be odd, they are {:?}",
                self.kernel_sizes
            );
        }
        if self.head_norm_first && self.head_hidden_size.is_some() {
            bail!("ConvNextConfig: head_hidden_size cannot be combined with head_norm_first");
        }
        Ok(())
    }

    /// Side of the input that becomes one position behind the stem.
    pub(super) fn stem_stride(&self) -> usize {
        match self.stem_type {
            StemType::Patch => self.patch_size,
            _ => 4,
        }
    }
}

impl Default for ConvNextConfig {
    fn default() -> Self {
        Self::TINY
    }
}

impl ActLayer {
    pub(super) fn activation(self) -> Activation {
        match self {
            ActLayer::Gelu => Activation::Gelu,
            ActLayer::GeluTanh => Activation::GeluPytorchTanh,
            ActLayer::Silu => Activation::Silu,
        }
    }
}
