//! From an image to tokens.

use super::config::{VitConfig, VitNames};
use super::layer_norm;
use super::positions::interpolated;
use crate::models::parts::WEIGHT;
use crate::{LoraModel, ops};
use candle_core::{DType, Result, Tensor, bail};
use candle_nn::{Conv2d, Conv2dConfig, LayerNorm, Module, VarBuilder, init};

/// Patches, the tokens in front of them, positions.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Embeddings {
    #[lora(flatten)]
    parts: Parts,
    #[lora(flatten)]
    norm: PreNorm,
}

/// The parts under the names of a checkpoint.
#[derive(Clone, Debug, LoraModel)]
enum Parts {
    Timm {
        cls_token: Option<Tensor>,
        dist_token: Option<Tensor>,
        #[lora(name = "pos_embed")]
        positions: Tensor,
        #[lora(name = "patch_embed.proj")]
        patches: Conv2d,
    },
    Vit {
        #[lora(name = "embeddings.cls_token")]
        cls_token: Option<Tensor>,
        #[lora(name = "embeddings.distillation_token")]
        dist_token: Option<Tensor>,
        #[lora(name = "embeddings.position_embeddings")]
        positions: Tensor,
        #[lora(name = "embeddings.patch_embeddings.projection")]
        patches: Conv2d,
    },
    Clip {
        #[lora(name = "embeddings.class_embedding")]
        cls_token: Option<Tensor>,
        #[lora(name = "embeddings.position_embedding.weight")]
        positions: Tensor,
        #[lora(name = "embeddings.patch_embedding")]
        patches: Conv2d,
    },
}

/// The norm in front of the layers, of CLIP.
#[derive(Clone, Debug, LoraModel)]
enum PreNorm {
    Timm {
        norm_pre: Option<LayerNorm>,
    },
    /// The misspelt name is the checkpoint's.
    Clip {
        pre_layrnorm: Option<LayerNorm>,
    },
}

impl Embeddings {
    pub(super) fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let norm = |name: &str| {
            let norm = config.pre_norm.then(|| layer_norm(config, vb.pp(name)));
            norm.transpose()
        };
        let norm = match config.names {
            VitNames::Timm => PreNorm::Timm {
                norm_pre: norm("norm_pre")?,
            },
            _ => PreNorm::Clip {
                pre_layrnorm: norm("pre_layrnorm")?,
            },
        };
        Ok(Self {
            parts: Parts::new(config, &vb)?,
            norm,
        })
    }
}

impl Parts {
    fn new(config: &VitConfig, vb: &VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        let rows = config.prefix_tokens() + config.side().pow(2);
        let token = |is_there: bool, name: &str| {
            let token = is_there.then(|| vb.get_with_hints((1, 1, width), name, WEIGHT));
            token.transpose()
        };
        let (first, second) = (config.class_token, config.distillation_token);
        let positions = |name: &str| vb.get_with_hints((1, rows, width), name, WEIGHT);
        Ok(match config.names {
            VitNames::Timm => Self::Timm {
                cls_token: token(first, "cls_token")?,
                dist_token: token(second, "dist_token")?,
                positions: positions("pos_embed")?,
                patches: patches(config, vb.pp("patch_embed.proj"))?,
            },
            VitNames::Vit | VitNames::Deit | VitNames::Dinov2 => Self::Vit {
                cls_token: token(first, "embeddings.cls_token")?,
                dist_token: token(second, "embeddings.distillation_token")?,
                positions: positions("embeddings.position_embeddings")?,
                patches: patches(config, vb.pp("embeddings.patch_embeddings.projection"))?,
            },
            VitNames::Clip | VitNames::Siglip => {
                let vb = vb.pp("embeddings");
                let class = || vb.get_with_hints(width, "class_embedding", WEIGHT);
                let table = "position_embedding.weight";
                Self::Clip {
                    cls_token: first.then(class).transpose()?,
                    positions: vb.get_with_hints((rows, width), table, WEIGHT)?,
                    patches: patches(config, vb.pp("patch_embedding"))?,
                }
            }
        })
    }
}

fn patches(config: &VitConfig, vb: VarBuilder) -> Result<Conv2d> {
    let (width, side) = (config.hidden_size, config.patch_size);
    let shape = (width, config.in_chans, side, side);
    let weight = vb.get_with_hints(shape, "weight", WEIGHT)?;
    let bias = || vb.get_with_hints(width, "bias", init::ZERO);
    let bias = config.patch_bias.then(bias).transpose()?;
    let stride = Conv2dConfig {
        stride: side,
        ..Conv2dConfig::default()
    };
    Ok(Conv2d::new(weight, bias, stride))
}

#[lora::forward]
impl Embeddings {
    /// From (batch, in_chans, height, width) to (batch, tokens, hidden_size); this share is dropped.
    pub(super) fn forward(
        &self,
        images: &Tensor,
        config: &VitConfig,
        dropped: f64,
    ) -> Result<Tensor> {
        let patch = config.patch_size;
        let (batch, height, width) = match *images.dims() {
            [batch, channels, height, width] if channels == config.in_chans => {
                (batch, height, width)
            }
            _ => bail!(
                "the images must be (batch, {}, height, width), their shape is {:?}",
                config.in_chans,
                images.dims()
            ),
        };
        let (down, across) = (height / patch, width / patch);
        if height % patch != 0 || width % patch != 0 || down * across == 0 {
            bail!("images of {height} x {width} are not made of patches of {patch} x {patch}");
        }
        let is_table = (down, across) == (config.side(), config.side());
        if config.names == VitNames::Timm && !is_table {
            let side = config.image_size;
            bail!("images of {height} x {width} for a model of {side} x {side}: resize images");
        }
        let (first, second, positions, patches) = self.parts.in_order();
        let mut tokens = Vec::new();
        for token in [first, second].into_iter().flatten() {
            let token = token.reshape((1, 1, config.hidden_size))?;
            tokens.push(
                token
                    .broadcast_as((batch, 1, config.hidden_size))?
                    .contiguous()?,
            );
        }
        tokens.push(patches.forward(images)?.flatten_from(2)?.transpose(1, 2)?);
        let xs = Tensor::cat(&tokens, 1)?;
        let positions = positions.reshape(((), config.hidden_size))?;
        let positions = match is_table {
            true => positions,
            false => {
                let (table, prefix) = (config.side().pow(2), config.prefix_tokens());
                // bf16 would shift the table.
                let wide = positions.to_dtype(DType::F32)?;
                let rows = wide.narrow(0, prefix, table)?;
                let rows = interpolated(&rows, config.side(), (down, across))?;
                let all = Tensor::cat(&[&wide.narrow(0, 0, prefix)?, &rows], 0)?;
                all.to_dtype(positions.dtype())?
            }
        };
        let xs = ops::dropout(&xs.broadcast_add(&positions)?, dropped as f32)?;
        self.norm.forward(&xs)
    }
}

#[lora::forward]
impl Parts {
    /// The class token, DeiT's second token, positions, and the layer of patches.
    fn in_order(&self) -> (Option<&Tensor>, Option<&Tensor>, &Tensor, &Conv2d) {
        match self {
            Self::Timm {
                cls_token,
                dist_token,
                positions,
                patches,
            }
            | Self::Vit {
                cls_token,
                dist_token,
                positions,
                patches,
            } => (cls_token.as_ref(), dist_token.as_ref(), positions, patches),
            Self::Clip {
                cls_token,
                positions,
                patches,
            } => (cls_token.as_ref(), None, positions, patches),
        }
    }
}

#[lora::forward]
impl Module for PreNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (Self::Timm { norm_pre: norm } | Self::Clip { pre_layrnorm: norm }) = self;
        match norm {
            Some(norm) => norm.forward(xs),
            None => Ok(xs.clone()),
        }
    }
}
