//! The settings as flags. Their names are those of the keys in a file; `_` is written `-`.

use clap::{Args, Command};
use serde::Serialize;
use std::path::PathBuf;

/// All settings. Those that are not given come from a file, or are as the job has them.
#[derive(Clone, Debug, Default, Args, Serialize)]
pub struct Flags {
    #[command(flatten)]
    #[serde(flatten)]
    data: DataFlags,
    #[command(flatten)]
    #[serde(flatten)]
    augment: AugmentFlags,
    #[command(flatten)]
    #[serde(flatten)]
    adapter: AdapterFlags,
    #[command(flatten)]
    #[serde(flatten)]
    steps: StepFlags,
    #[command(flatten)]
    #[serde(flatten)]
    optimizer: OptimizerFlags,
    #[command(flatten)]
    #[serde(flatten)]
    watch: WatchFlags,
}

impl Flags {
    /// The names of all settings.
    pub fn names() -> Vec<String> {
        let command = Self::augment_args(Command::new("train"));
        let names = command.get_arguments().map(|arg| arg.get_id().to_string());
        names.collect()
    }
}

/// A number, as files may hold it: neither NaN nor infinite.
fn number(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| "a number is expected".into())
}

#[derive(Clone, Debug, Default, Args, Serialize)]
#[command(next_help_heading = "Model and data")]
struct DataFlags {
    /// Base model: a directory, a GGUF file, weights of a model of images with their description beside, or
    /// OWNER/NAME on the Hugging Face hub
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,
    /// What to learn: a JSONL file, whose keys say what is learned; any other file is one text; a folder holds
    /// images, a subfolder for each class
    #[arg(long, short, value_name = "FILE|DIR")]
    data: Option<PathBuf>,
    /// What to measure with, of the same kind
    #[arg(long, value_name = "FILE|DIR")]
    valid: Option<PathBuf>,
    /// Share of the data that is held out to measure with, in place of --valid; 0 for none [default: 0.1 of
    /// texts, 0.2 of texts with classes, 0.25 of pairs and of each class of images]
    #[arg(long, value_parser = number, value_name = "SHARE")]
    held_out: Option<f64>,
    /// Examples that are measured with at most, spread over all [default: 200 texts, 2000 pairs]
    #[arg(long, value_name = "NUMBER")]
    eval_limit: Option<usize>,
    /// Tokens of a text at most; longer ones are cut [default: 128]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// Put several texts into a row, so that little is padded
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pack: Option<bool>,
    /// Learn prompts, too, and what users say in conversations
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    learn_prompts: Option<bool>,
    /// What is learned of pairs [default: cosent where they have a score, else ranking]
    #[arg(long, value_parser = ["ranking", "cosine", "triplet", "cosent"])]
    loss: Option<String>,
    /// Folder for the adapter and all else that is written [default: output]
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Args, Serialize)]
#[command(next_help_heading = "Random changes to training images, named as timm names them")]
struct AugmentFlags {
    /// Chance that left and right change places; 0.5 is usual for photos, not for letters or digits [default: 0]
    #[arg(long, value_parser = number, value_name = "CHANCE")]
    hflip: Option<f64>,
    /// Chance that top and bottom change places [default: 0]
    #[arg(long, value_parser = number, value_name = "CHANCE")]
    vflip: Option<f64>,
    /// Cut a part out of each image and bring it to the image's size (random resized crop): the least and the
    /// largest share of the area, such as 0.6,1 [default: the whole image]
    #[arg(long, value_parser = number, value_name = "LEAST,MOST", value_delimiter = ',', num_args = 1..=2)]
    scale: Option<Vec<f64>>,
    /// Least and largest width over height of that part [default: 0.75,1.3333]
    #[arg(long, value_parser = number, value_name = "LEAST,MOST", value_delimiter = ',', num_args = 1..=2)]
    ratio: Option<Vec<f64>>,
    /// Multiply brightness, contrast and saturation by up to so much more or less than 1, such as 0.4 [default: 0]
    #[arg(long, value_parser = number, value_name = "AMOUNT")]
    color_jitter: Option<f64>,
    /// Shift each image by up to this share of its side, turn it by up to twice as many radians, and zoom by up
    /// to twice as much; 0.03 is usual for scans [default: 0]
    #[arg(long, value_parser = number, value_name = "AMOUNT")]
    warp: Option<f64>,
}

#[derive(Clone, Debug, Default, Args, Serialize)]
#[command(next_help_heading = "Adapter")]
struct AdapterFlags {
    /// Rank of the low-rank updates [default: 8]
    #[arg(long)]
    rank: Option<usize>,
    /// Numerator of their scaling alpha / rank [default: twice the rank]
    #[arg(long, value_parser = number)]
    alpha: Option<f64>,
    /// Share of the adapters' inputs that is dropped in training [default: 0]
    #[arg(long, value_parser = number, value_name = "SHARE")]
    dropout: Option<f64>,
    /// Layers to adapt: ends of their paths, separated by commas, or all-linear [default: all-linear of a
    /// language model, of encoders and vision transformers queries and values, of a ConvNeXt
    /// the layers of its MLPs]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    target_modules: Option<Vec<String>>,
    /// Layers to adapt: a regular expression for whole paths
    #[arg(long, value_name = "REGEX")]
    target_regex: Option<String>,
    /// Layers not to adapt: ends of their paths
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    exclude_modules: Option<Vec<String>>,
    /// Numbers of the layers to adapt, of those that --target-modules names [default: all]
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    layers_to_transform: Option<Vec<usize>>,
    /// Modules to train in full: ends of their paths
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    modules_to_save: Option<Vec<String>>,
    /// Biases to train [default: none]
    #[arg(long, value_parser = ["none", "lora_only", "all"])]
    bias: Option<String>,
    /// Split updates into direction and length (DoRA)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    dora: Option<bool>,
    /// Scale by alpha / √rank (rsLoRA)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    rslora: Option<bool>,
    /// Give B a bias of its own
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    lora_bias: Option<bool>,
    /// How adapters start: default, gaussian, pissa, pissa_niter_N, olora, orthogonal, mica, eva, corda,
    /// lora_ga, loftq [default: default]
    #[arg(long, value_name = "NAME")]
    init: Option<String>,
    /// Quantise the base model (QLoRA): q4_0, q4_1, q5_0, q5_1, q8_0, q2k, q3k, q4k, q5k, q6k. A GGUF file
    /// is quantised already
    #[arg(long, value_name = "TYPE")]
    quantize: Option<String>,
    /// Layers that --quantize quantises [default: all linear layers but the head]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    quantize_modules: Option<Vec<String>>,
    /// Keep no inner values of layers and compute them anew: less memory, more time
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    recompute: Option<bool>,
}

#[derive(Clone, Debug, Default, Args, Serialize)]
#[command(next_help_heading = "Steps")]
struct StepFlags {
    /// Passes over the data [default: 3 over texts, with classes or not, and pairs, 15 over images]
    #[arg(long)]
    epochs: Option<usize>,
    /// Steps, in place of --epochs
    #[arg(long)]
    steps: Option<usize>,
    /// Examples in a batch [default: 8 texts, 16 texts with classes, 64 pairs, 32 images]
    #[arg(long)]
    batch: Option<usize>,
    /// Batches whose gradients make one step [default: 1]
    #[arg(long, value_name = "BATCHES")]
    accumulate: Option<usize>,
    /// Seed of everything that is drawn [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Threads to compute with, at most one a core; another number may change the last bits of the result
    /// [default: RAYON_NUM_THREADS, else all cores]
    #[arg(long, value_name = "NUMBER")]
    threads: Option<usize>,
}

#[derive(Clone, Debug, Default, Args, Serialize)]
#[command(next_help_heading = "Optimiser")]
struct OptimizerFlags {
    /// Which one [default: adamw]
    #[arg(long, value_parser = ["adamw", "lora_plus", "lora_fa", "riemannian"])]
    optimizer: Option<String>,
    /// Highest learning rate [default: 2e-3 of a language model and of texts with classes, 5e-4 of
    /// pairs, 5e-3 of a model of images]
    #[arg(long, value_parser = number)]
    lr: Option<f64>,
    /// Its course behind the warm-up [default: cosine]
    #[arg(long, value_parser = ["constant", "linear", "cosine"])]
    schedule: Option<String>,
    /// Share of the steps in which it rises from 0 [default: 0.05]
    #[arg(long, value_parser = number, value_name = "SHARE")]
    warmup: Option<f64>,
    /// Weight decay of matrices [default: 0]
    #[arg(long, value_parser = number, value_name = "NUMBER")]
    weight_decay: Option<f64>,
    /// Largest norm of a step's gradients; 0 for any [default: 1]
    #[arg(long, value_parser = number, value_name = "NORM")]
    clip: Option<f64>,
    /// How slowly the first moment changes [default: 0.9]
    #[arg(long, value_parser = number)]
    beta1: Option<f64>,
    /// How slowly the second moment changes [default: 0.999]
    #[arg(long, value_parser = number)]
    beta2: Option<f64>,
    /// Added to the root of the second moment [default: 1e-8]
    #[arg(long, value_parser = number)]
    eps: Option<f64>,
    /// By how much B learns faster than A, with lora_plus [default: 16]
    #[arg(long, value_parser = number, value_name = "RATIO")]
    lora_plus_ratio: Option<f64>,
    /// Learning rate of adapted embeddings, with lora_plus [default: 1e-6]
    #[arg(long, value_parser = number, value_name = "LR")]
    embedding_lr: Option<f64>,
    /// Added to the diagonals before they are inverted, with riemannian [default: 0.01]
    #[arg(long, value_parser = number, value_name = "NUMBER")]
    riemannian_reg: Option<f64>,
}

#[derive(Clone, Debug, Default, Args, Serialize)]
#[command(next_help_heading = "Evaluation and checkpoints")]
struct WatchFlags {
    /// When to measure: after each so many steps, each epoch, or never but at the end [default: epoch]
    #[arg(long, value_name = "STEPS|epoch|never")]
    eval_every: Option<String>,
    /// When to write a checkpoint; one more is written at the end [default: epoch]
    #[arg(long, value_name = "STEPS|epoch|never")]
    save_every: Option<String>,
    /// Checkpoints to keep beside the best [default: 2]
    #[arg(long, value_name = "NUMBER")]
    keep: Option<usize>,
    /// Metric that says which evaluation is the best, such as loss, accuracy, f1, ndcg@10 [default: loss,
    /// accuracy, ndcg@10 or spearman]
    #[arg(long, value_name = "METRIC")]
    best: Option<String>,
    /// End after so many evaluations in a row that were no better
    #[arg(long, value_name = "EVALUATIONS")]
    patience: Option<usize>,
    /// Save the best adapter, not the last
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    end_with_best: Option<bool>,
    /// Compare the first batch's gradients with differences of the loss [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    check_gradients: Option<bool>,
    /// Write an event file for TensorBoard, too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tensorboard: Option<bool>,
}
