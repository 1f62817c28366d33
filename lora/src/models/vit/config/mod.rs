//! What a vision transformer looks like.

mod parse;
mod timm;

use crate::models::labels;
use candle_nn::Activation;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The architecture of a [`Vit`](super::Vit).
///
/// It is read from a `config.json` of the Hugging Face hub, with transformers' defaults for each
/// `model_type`: `vit`, `deit`, `dinov2`, and the towers of images of `clip` and `siglip`, alone
/// (`clip_vision_model`, `siglip_vision_model`) or within a whole model's file. A setting that is not
/// supported and would change the result is an error. timm's variants have names
/// ([`create`](crate::models::create)); a `config.json` of timm names one as its `architecture`.
///
/// ```
/// use lora::models::vit::{VitConfig, VitPool};
///
/// let config: VitConfig = serde_json::from_str(
///     r#"{"model_type": "dinov2", "architectures": ["Dinov2ForImageClassification"],
///         "hidden_size": 384, "num_attention_heads": 6, "id2label": {"0": "cat", "1": "dog"}}"#,
/// )?;
/// assert_eq!((config.pool, config.labels.len()), (VitPool::ClassAndMean, 2));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
#[non_exhaustive]
pub struct VitConfig {
    /// The type that the file names, for example `dinov2`; `timm` for timm's variants.
    pub model_type: String,
    /// What the layers are called.
    pub names: VitNames,
    /// Side of the images.
    pub image_size: usize,
    /// Side of a patch.
    pub patch_size: usize,
    /// Channels of the images.
    pub in_chans: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width within each MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of each layer; they divide the width.
    pub num_attention_heads: usize,
    /// The activation of the MLPs.
    pub hidden_act: VitAct,
    /// What the norms add to the variance.
    pub layer_norm_eps: f64,
    /// Queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// The embedding of patches has a bias.
    pub patch_bias: bool,
    /// A token for the whole image stands in front of the patches.
    pub class_token: bool,
    /// DeiT's second token, for what a teacher says, which has a classifier of its own if
    /// `distilled_head`.
    pub distillation_token: bool,
    /// The logits are the mean of two classifiers', of class token and distillation token.
    pub distilled_head: bool,
    /// The embeddings are normalised in front of the layers.
    pub pre_norm: bool,
    /// Initial value of the factors of what a layer's attention and MLP add; `None` without factors.
    pub layer_scale: Option<f64>,
    /// How the tokens become one vector.
    pub pool: VitPool,
    /// Width of a projection of that vector, of CLIP.
    pub projection: Option<usize>,
    /// The names of the classes; none in a model without a classifier, which returns the vector.
    pub labels: Vec<String>,
    /// What is dropped in the training of a LoRA model.
    pub dropouts: VitDropouts,
    /// Settings of the file that have no effect here.
    pub without_effect: Vec<String>,
}

/// Which share of the numbers is dropped in training, of a [`VitConfig`]. A base model drops nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct VitDropouts {
    /// Behind the positions: timm's `pos_drop_rate`.
    pub embeddings: f64,
    /// Of the attention's weights: timm's `attn_drop_rate`.
    pub attention: f64,
    /// Behind the attention: timm's `proj_drop_rate`, as the next two.
    pub output: f64,
    /// Within the MLP, behind the activation.
    pub inner: f64,
    /// Behind the MLP.
    pub mlp: f64,
    /// In front of the classifier: timm's `drop_rate`. Two classifiers have none.
    pub classifier: f64,
}

/// What the layers of a [`Vit`](super::Vit) are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VitNames {
    /// timm's: `blocks.0.attn.qkv`.
    Timm,
    /// ViT's in files: `vit.encoder.layer.0.attention.attention.query`.
    Vit,
    /// As `Vit`, with `deit`.
    Deit,
    /// DINOv2's: `dinov2.encoder.layer.0.attention.attention.query`.
    Dinov2,
    /// CLIP's: `vision_model.encoder.layers.0.self_attn.q_proj`.
    Clip,
    /// As `Clip`, without a class token, and with a pooling of its own.
    Siglip,
}

/// The activation of the MLPs of a [`Vit`](super::Vit).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum VitAct {
    /// One of candle's.
    Plain(Activation),
    /// x·σ(1.702·x), of CLIP.
    QuickGelu,
}

/// How the tokens of a [`Vit`](super::Vit) become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VitPool {
    /// The class token's.
    Class,
    /// The mean of the patches', normalised behind it.
    Mean,
    /// The class token's and the mean of the patches', side by side, of DINOv2's classifier.
    ClassAndMean,
    /// Attention of a learned query to all tokens, and an MLP, of SigLIP.
    Attention,
}

impl VitConfig {
    /// timm's `vit_base_patch16_224`, from which its variants differ.
    pub(super) fn timm() -> Self {
        Self {
            model_type: "timm".into(),
            names: VitNames::Timm,
            image_size: 224,
            patch_size: 16,
            in_chans: 3,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            hidden_act: VitAct::Plain(Activation::Gelu),
            layer_norm_eps: 1e-6,
            qkv_bias: true,
            patch_bias: true,
            class_token: true,
            distillation_token: false,
            distilled_head: false,
            pre_norm: false,
            layer_scale: None,
            pool: VitPool::Class,
            projection: None,
            labels: labels::numbered(1000),
            dropouts: VitDropouts::default(),
            without_effect: Vec::new(),
        }
    }

    /// The configuration with so many classes.
    pub fn with_num_labels(mut self, count: usize) -> Self {
        self.labels = labels::for_count(self.labels, count);
        self
    }

    /// The tokens in front of the patches.
    pub(super) fn prefix_tokens(&self) -> usize {
        usize::from(self.class_token) + usize::from(self.distillation_token)
    }

    /// The patches along a side.
    pub(super) fn side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// What stands before the paths of a model with a head in a file.
    pub(super) fn prefix(&self) -> Option<&'static str> {
        match self.names {
            VitNames::Timm => None,
            VitNames::Vit => Some("vit"),
            VitNames::Deit => Some("deit"),
            VitNames::Dinov2 => Some("dinov2"),
            VitNames::Clip | VitNames::Siglip => Some("vision_model"),
        }
    }
}

impl TryFrom<Map<String, Value>> for VitConfig {
    type Error = String;

    fn try_from(map: Map<String, Value>) -> Result<Self, String> {
        Self::parse(&map).map_err(|problems| problems.join("\n"))
    }
}
