//! The command line.

use crate::args::{any_number, count, probability};
use candle_core::DType;
use candle_core::quantized::GgmlDType;
use clap::{Parser, ValueEnum};
use lora::layers::GGML_TYPES;
use std::path::PathBuf;

/// Measures a training step and a forward pass, and prints one line of JSON.
///
/// A step is the forward pass, the loss, the backward pass and AdamW's update. The loss is
/// cross-entropy on random images or texts with random labels, or on random tokens that each predict
/// the next one; of mlp it is the mean square. Times are medians, in seconds, after one step that is
/// not counted; memory is the process's resident set in MB, before the first step and at its peak
/// until the last one, and null where there is no /proc.
#[derive(Parser)]
#[command(name = "step_bench", mut_args(any_number))]
pub(super) struct Args {
    /// The model's name: a ConvNeXt of lora::models; vit_b16, a ViT-B/16 with 1000 classes; minilm, a
    /// BERT of all-MiniLM-L6-v2's shape with two classes; smollm2 and tinyllama, decoders of
    /// SmolLM2-135M's and TinyLlama-1.1B's shape; mlp, two layers of 768 and 3072.
    #[arg(long, default_value = "convnext_tiny")]
    pub(super) model: String,

    /// What is trained: adapters, every parameter, or nothing. Without training there is no step_s.
    #[arg(long, default_value = "lora")]
    pub(super) mode: Mode,

    /// The model's weights: a safetensors file, or a directory as transformers writes it. By default
    /// they are random.
    #[arg(long, value_name = "DIR")]
    pub(super) weights: Option<PathBuf>,

    /// Rank of the adapters.
    #[arg(long, default_value_t = 2, value_parser = count)]
    pub(super) rank: usize,

    /// Images or sequences in a batch; rows of mlp.
    #[arg(long, default_value_t = 8, value_parser = count)]
    pub(super) batch: usize,

    /// Height and width of the images.
    #[arg(long, default_value_t = 224, value_parser = count)]
    pub(super) size: usize,

    /// Tokens in a sequence.
    #[arg(long, default_value_t = 256, value_parser = count)]
    pub(super) seq: usize,

    /// What an adapter is: LoRA's update, or DoRA's.
    #[arg(long, default_value = "lora")]
    pub(super) variant: Variant,

    /// The layers that get an adapter: queries and values (of ConvNeXt and mlp, which have none, the
    /// MLPs' layers), or all linear layers but the head of a decoder.
    #[arg(long, default_value = "qv")]
    pub(super) targets: Choice,

    /// The share of hidden values and of attention's weights that training drops, of minilm and
    /// vit_b16.
    #[arg(long, default_value_t = 0.0, value_parser = probability)]
    pub(super) dropout: f64,

    /// Steps, and forward passes, to measure.
    #[arg(long, default_value_t = 5, value_parser = count)]
    pub(super) steps: usize,

    /// Seed of weights, images, labels, tokens and dropout.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,

    /// Whose code the model is: this crate's, or a user's over plain candle layers with nothing
    /// fused by hand (examples/user_bert.rs, user_convnext.rs, user_llama.rs).
    #[arg(long, default_value = "library")]
    pub(super) written: Written,

    /// Merge the adapters before the forward passes are timed.
    #[arg(long)]
    pub(super) merge: bool,

    /// What the backward pass computes anew instead of keeping it, in the library's model: nothing,
    /// the hidden values of each MLP (of a ConvNeXt), or each block.
    #[arg(long, default_value = "none")]
    pub(super) recompute: Recompute,

    /// Dtype of the frozen weights and the activations; adapters are f32.
    #[arg(long, default_value = "f32")]
    pub(super) dtype: Precision,

    /// Quantise to this type of GGML's, such as q4_1 or q4_k: each matrix of a decoder as soon as it is
    /// made, the linear layers of other models as they are converted.
    #[arg(long, value_name = "TYPE", value_parser = quantisation)]
    pub(super) quantize: Option<GgmlDType>,

    /// Run one more step, or without training one more forward pass, and print where its time goes,
    /// by op, to the standard error.
    #[arg(long)]
    pub(super) profile: bool,
}

/// Reads a type of GGML's by its name.
fn quantisation(text: &str) -> Result<GgmlDType, String> {
    let plain = |name: &str| name.replace('_', "").to_lowercase();
    let name = |dtype: &GgmlDType| format!("{dtype:?}");
    let known = GGML_TYPES
        .iter()
        .find(|dtype| plain(&name(dtype)) == plain(text));
    known.copied().ok_or_else(|| {
        let names: Vec<String> = GGML_TYPES.iter().map(name).collect();
        format!("it must be one of {}", names.join(", ").to_lowercase())
    })
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Mode {
    Lora,
    Full,
    Base,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Variant {
    Lora,
    Dora,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Choice {
    Qv,
    AllLinear,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Recompute {
    None,
    Mlp,
    Block,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Written {
    Library,
    User,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Precision {
    F32,
    Bf16,
}

impl Precision {
    pub(super) fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        }
    }
}
