//! ConvNeXt as a user of the crate writes it: the structs and the forward pass of candle's own
//! example, over plain candle layers, and the derive.
//!
//! The variants with another stem, norm, activation or MLP than `convnext_tiny`'s are left to
//! [`lora::models::convnext`]. Parameter names are timm's, as there, so that a checkpoint fits both.

use candle_core::{Result, Tensor, bail};
use candle_nn::{
    Activation, Conv2d, Conv2dConfig, Init, LayerNorm, Linear, Module, VarBuilder, conv2d,
    layer_norm, linear,
};
use lora::LoraModel;
use lora::models::convnext::{self, ActLayer, ConvNextConfig, NormLayer, StemType};
use lora::models::{Architecture, Options, Variant};
use lora::ops;

/// A ConvNeXt classifier of images.
#[derive(Clone, Debug, LoraModel)]
pub struct ConvNext {
    stem: Stem,
    stages: Vec<Stage>,
    head: Head,
}

#[derive(Clone, Debug, LoraModel)]
struct Stem(Conv2d, LayerNorm);

#[derive(Clone, Debug, LoraModel)]
struct Stage {
    downsample: Option<Downsample>,
    blocks: Vec<Block>,
}

#[derive(Clone, Debug, LoraModel)]
struct Downsample(LayerNorm, Conv2d);

#[derive(Clone, Debug, LoraModel)]
struct Block {
    conv_dw: Conv2d,
    norm: LayerNorm,
    mlp: Mlp,
    gamma: Tensor,
}

#[derive(Clone, Debug, LoraModel)]
struct Mlp {
    #[lora(rank)]
    fc1: Linear,
    act: Activation,
    #[lora(rank)]
    fc2: Linear,
}

#[derive(Clone, Debug, LoraModel)]
struct Head {
    norm: LayerNorm,
    fc: Linear,
}

#[lora::forward]
impl Module for ConvNext {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = self.stem.forward(xs)?;
        for stage in &self.stages {
            xs = stage.forward(&xs)?;
        }
        self.head.forward(&xs)
    }
}

#[lora::forward]
impl Module for Stem {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.0)?
            .permute((0, 2, 3, 1))?
            .apply(&self.1)?
            .permute((0, 3, 1, 2))
    }
}

#[lora::forward]
impl Module for Stage {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = match &self.downsample {
            Some(downsample) => downsample.forward(xs)?,
            None => xs.clone(),
        };
        for block in &self.blocks {
            xs = block.forward(&xs)?;
        }
        Ok(xs)
    }
}

#[lora::forward]
impl Module for Downsample {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.permute((0, 2, 3, 1))?
            .apply(&self.0)?
            .permute((0, 3, 1, 2))?
            .apply(&self.1)
    }
}

#[lora::forward]
impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = xs
            .apply(&self.conv_dw)?
            .permute((0, 2, 3, 1))?
            .apply(&self.norm)?
            .apply(&self.mlp)?
            .permute((0, 3, 1, 2))?;
        ops::residual(xs, &ys, Some(&self.gamma), 1)
    }
}

#[lora::forward]
impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc1)?.apply(&self.act)?.apply(&self.fc2)
    }
}

#[lora::forward]
impl Module for Head {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.mean((2, 3))?.apply(&self.norm)?.apply(&self.fc)
    }
}

impl ConvNext {
    /// A model with the weights of `vb`, under timm's names.
    ///
    /// # Errors
    /// If the configuration asks for more than this model has, or a weight is missing or has
    /// another shape.
    pub fn new(config: &ConvNextConfig, vb: VarBuilder) -> Result<Self> {
        let plain = ConvNextConfig {
            in_chans: config.in_chans,
            num_classes: config.num_classes,
            depths: config.depths,
            dims: config.dims,
            kernel_sizes: config.kernel_sizes,
            ls_init_value: config.ls_init_value,
            patch_size: config.patch_size,
            norm_eps: config.norm_eps,
            stem_type: StemType::Patch,
            norm_layer: NormLayer::Layer,
            act_layer: ActLayer::Gelu,
            ..Default::default()
        };
        // With patches of 2, the first stage would have to halve the map once more.
        let (Some(gamma), true) = (
            config.ls_init_value,
            *config == plain && config.patch_size != 2,
        ) else {
            bail!("the user's ConvNeXt is that of convnext_tiny, small, base, large and xlarge");
        };
        let (dims, eps) = (config.dims, config.norm_eps);
        let vb_stem = vb.pp("stem");
        let stem = Stem(
            patches(config.in_chans, dims[0], config.patch_size, vb_stem.pp(0))?,
            layer_norm(dims[0], eps, vb_stem.pp(1))?,
        );
        let mut stages = Vec::new();
        for (index, &dim) in dims.iter().enumerate() {
            let vb = vb.pp("stages").pp(index);
            let mut downsample = None;
            if index > 0 {
                let (before, vb) = (dims[index - 1], vb.pp("downsample"));
                downsample = Some(Downsample(
                    layer_norm(before, eps, vb.pp(0))?,
                    patches(before, dim, 2, vb.pp(1))?,
                ));
            }
            let mut blocks = Vec::new();
            for block in 0..config.depths[index] {
                let vb = vb.pp("blocks").pp(block);
                let kernel = config.kernel_sizes[index];
                blocks.push(Block::new(dim, kernel, gamma, eps, vb)?);
            }
            stages.push(Stage { downsample, blocks });
        }
        let vb_head = vb.pp("head");
        let head = Head {
            norm: layer_norm(dims[3], eps, vb_head.pp("norm"))?,
            fc: linear(dims[3], config.num_classes, vb_head.pp("fc"))?,
        };
        Ok(Self { stem, stages, head })
    }
}

/// A convolution over patches that do not overlap.
fn patches(inputs: usize, outputs: usize, side: usize, vb: VarBuilder) -> Result<Conv2d> {
    let config = Conv2dConfig {
        stride: side,
        ..Default::default()
    };
    conv2d(inputs, outputs, side, config, vb)
}

impl Block {
    fn new(dim: usize, kernel: usize, gamma: f64, eps: f64, vb: VarBuilder) -> Result<Self> {
        let depthwise = Conv2dConfig {
            padding: kernel / 2,
            groups: dim,
            ..Default::default()
        };
        Ok(Self {
            conv_dw: conv2d(dim, dim, kernel, depthwise, vb.pp("conv_dw"))?,
            norm: layer_norm(dim, eps, vb.pp("norm"))?,
            mlp: Mlp {
                fc1: linear(dim, 4 * dim, vb.pp("mlp").pp("fc1"))?,
                act: Activation::Gelu,
                fc2: linear(4 * dim, dim, vb.pp("mlp").pp("fc2"))?,
            },
            gamma: vb.get_with_hints(dim, "gamma", Init::Const(gamma))?,
        })
    }
}

impl Architecture for ConvNext {
    type Config = ConvNextConfig;
    const CLASSIFIER: &'static str = "head.fc";

    fn variants() -> &'static [Variant<ConvNextConfig>] {
        convnext::ConvNext::variants()
    }

    fn with_options(config: &ConvNextConfig, options: &Options) -> ConvNextConfig {
        convnext::ConvNext::with_options(config, options)
    }

    fn build(config: &ConvNextConfig, vb: VarBuilder) -> Result<Self> {
        Self::new(config, vb)
    }
}
