//! Vision transformers: ViT, DeiT, DINOv2, and the towers of images of CLIP and SigLIP.
//!
//! One implementation with timm's names ([`create`](super::create)) and with those of the files of
//! transformers ([`auto`](super::auto)): their differences are in [`VitConfig`]. Left out is stochastic
//! depth, which is off in all of these models.
//!
//! transformers 5 calls some layers by other names than its files do, and so does an adapter that PEFT
//! trained there: see [`VitConfig::adapter_of_transformers_5`].

mod adapters;
mod block;
mod config;
mod embeddings;
mod head;
mod positions;
mod tower;
mod variants;

pub use config::{VitAct, VitConfig, VitDropouts, VitNames, VitPool};

use super::{Architecture, Extra, Options, Variant, parts};
use crate::LoraModel;
use crate::config::matching::is_or_starts_with;
use candle_core::{Result, Tensor, bail};
use candle_nn::{LayerNorm, Module, VarBuilder};
use head::Head;
use tower::Tower;

/// A vision transformer.
///
/// `#[lora(rank)]` marks queries and values of every layer; with timm's names `qkv`, one layer.
/// [`LoraConfig::recompute`](crate::LoraConfig::recompute) takes the layers, `blocks.0`.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use lora::models::{self, Options, Weights, vit::Vit};
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// let options = Options::new().num_classes(10);
/// let created = models::create::<Vit>("vit_tiny_patch16_224", Weights::Random(0), &options)?;
/// let model = created.model.to_lora(&LoraConfig::new(2).modules_to_save(["head"]))?;
/// let images = Tensor::zeros((1, 3, 224, 224), DType::F32, &Device::Cpu)?;
/// assert_eq!(model.forward(&images)?.dims(), [1, 10]);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug, LoraModel)]
pub struct Vit {
    #[lora(config)]
    config: VitConfig,
    #[lora(flatten)]
    tower: Named,
    #[lora(flatten)]
    head: Head,
}

/// The tower under the name of a checkpoint.
#[derive(Clone, Debug, LoraModel)]
enum Named {
    Bare(#[lora(flatten)] Tower),
    Vit { vit: Tower },
    Deit { deit: Tower },
    Dinov2 { dinov2: Tower },
    Vision { vision_model: Tower },
}

impl Vit {
    /// A model with the weights of `vb`, under the names that the configuration chooses.
    ///
    /// # Errors
    /// If the configuration is not valid, or a weight is missing or has another shape.
    pub fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        if config.side() == 0
            || !config
                .hidden_size
                .is_multiple_of(config.num_attention_heads)
        {
            bail!("VitConfig: image_size must hold a patch, and the heads must divide the width");
        }
        Ok(Self {
            tower: Named::new(config, &vb)?,
            head: Head::new(config, vb)?,
            config: config.clone(),
        })
    }
}

impl Named {
    fn new(config: &VitConfig, vb: &VarBuilder) -> Result<Self> {
        let tower = |vb| Tower::new(config, vb);
        let prefix = config.prefix();
        let inner = || tower(prefix.map_or_else(|| vb.clone(), |prefix| vb.pp(prefix)));
        Ok(match config.names {
            VitNames::Timm => Self::Bare(inner()?),
            VitNames::Vit => Self::Vit { vit: inner()? },
            VitNames::Deit => Self::Deit { deit: inner()? },
            VitNames::Dinov2 => Self::Dinov2 { dinov2: inner()? },
            VitNames::Clip | VitNames::Siglip => Self::Vision {
                vision_model: inner()?,
            },
        })
    }
}

#[lora::forward]
impl Vit {
    /// The configuration.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// The tokens of images (batch, in_chans, height, width), (batch, tokens, hidden_size): class
    /// token, DeiT's second token, patches; normalised, except with [`VitPool::Mean`]. For images of
    /// another size than the model's the positions are interpolated; with timm's names that is an
    /// error.
    ///
    /// # Errors
    /// If the images do not have the model's channels, or are not made of its patches.
    pub fn forward_features(&self, images: &Tensor) -> Result<Tensor> {
        self.tower.forward(images, &self.config, None)
    }

    /// The logits (batch, classes) of these tokens, or CLIP's projection; without either the pooled
    /// vector.
    ///
    /// # Errors
    /// If the tokens do not have the model's width.
    pub fn forward_head(&self, tokens: &Tensor) -> Result<Tensor> {
        let pooled = self.tower.pooled(tokens, &self.config)?;
        self.head.forward(&pooled, tokens, &self.config)
    }
}

#[lora::forward]
impl Named {
    fn forward(
        &self,
        images: &Tensor,
        config: &VitConfig,
        tokens: Option<usize>,
    ) -> Result<Tensor> {
        match self {
            Self::Bare(tower)
            | Self::Vit { vit: tower }
            | Self::Deit { deit: tower }
            | Self::Dinov2 { dinov2: tower }
            | Self::Vision {
                vision_model: tower,
            } => tower.forward(images, config, tokens),
        }
    }

    fn pooled(&self, tokens: &Tensor, config: &VitConfig) -> Result<Tensor> {
        match self {
            Self::Bare(tower)
            | Self::Vit { vit: tower }
            | Self::Deit { deit: tower }
            | Self::Dinov2 { dinov2: tower }
            | Self::Vision {
                vision_model: tower,
            } => tower.pooled(tokens, config),
        }
    }
}

#[lora::forward]
impl Module for Vit {
    /// What [`forward_head`](Self::forward_head) makes of the images' tokens.
    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        // The last layer computes the tokens that the head reads.
        let is_first = self.config.pool == VitPool::Class;
        let tokens = is_first.then(|| self.config.prefix_tokens());
        self.forward_head(&self.tower.forward(images, &self.config, tokens)?)
    }
}

impl Architecture for Vit {
    type Config = VitConfig;
    const CLASSIFIER: &'static str = "head";

    fn variants() -> &'static [Variant<VitConfig>] {
        &variants::VARIANTS
    }

    fn with_options(config: &VitConfig, options: &Options) -> VitConfig {
        let mut config = config.clone();
        config.in_chans = options.in_chans.unwrap_or(config.in_chans);
        let Some(classes) = options.num_classes else {
            return config;
        };
        if config.names == VitNames::Dinov2 && classes > 0 {
            config.pool = VitPool::ClassAndMean;
        }
        config.with_num_labels(classes)
    }

    fn build(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        Self::new(config, vb)
    }

    fn heads(config: &VitConfig, options: &Options) -> Vec<&'static str> {
        match (options.num_classes, config.names) {
            (None, _) => Vec::new(),
            (_, VitNames::Timm) => vec!["head", "head_dist"],
            _ => vec!["classifier", "cls_classifier", "distillation_classifier"],
        }
    }

    /// With or without the prefix of a model with a head.
    fn other_names(config: &VitConfig, name: &str) -> Vec<String> {
        let bare = config
            .prefix()
            .and_then(|prefix| name.strip_prefix(prefix)?.strip_prefix('.'));
        bare.map(Into::into).into_iter().collect()
    }

    fn extra(config: &VitConfig, name: &str) -> Extra {
        // Of a head that the model lacks, of CLIP's other tower, of training.
        const OTHER: [&str; 11] = [
            "head_dist",
            "classifier",
            "cls_classifier",
            "distillation_classifier",
            "visual_projection",
            "text_model",
            "text_projection",
            "logit_scale",
            "logit_bias",
            "pooler",
            "decoder",
        ];
        let bare = config
            .prefix()
            .and_then(|prefix| name.strip_prefix(prefix)?.strip_prefix('.'));
        let bare = bare.unwrap_or(name);
        let known = OTHER.iter().any(|module| is_or_starts_with(bare, module));
        match bare {
            _ if known => Extra::Harmless,
            "embeddings.mask_token" | "embeddings.position_ids" => Extra::Harmless,
            _ => Extra::Unknown,
        }
    }
}

fn layer_norm(config: &VitConfig, vb: VarBuilder) -> Result<LayerNorm> {
    parts::layer_norm(config.hidden_size, true, config.layer_norm_eps, vb)
}
