//! What the command lines of the programs share.

use clap::{Arg, Args, ValueEnum};
use lora::{LoraConfig, TrainBias};

/// The highest [`count`]: beyond it nothing is meant, but a sum could overflow.
const MANY: usize = 1_000_000;

/// Takes `-1` for an option's value, which is checked and named, not for another option.
pub fn any_number(arg: Arg) -> Arg {
    let takes_a_value = arg.get_action().takes_values();
    arg.allow_negative_numbers(takes_a_value)
}

/// Reads a whole number from 1 to a million.
///
/// # Errors
/// Says what it must be; clap adds the option's name.
pub fn count(text: &str) -> Result<usize, String> {
    whole(text, 1)
}

/// Reads a whole number from 0 to a million.
///
/// # Errors
/// As [`count`].
pub fn count_or_none(text: &str) -> Result<usize, String> {
    whole(text, 0)
}

fn whole(text: &str, least: usize) -> Result<usize, String> {
    let count = text
        .parse()
        .ok()
        .filter(|count| (least..=MANY).contains(count));
    count.ok_or_else(|| format!("it must be a whole number from {least} to {MANY}"))
}

/// Reads a number above 0.
///
/// # Errors
/// As [`count`].
pub fn positive(text: &str) -> Result<f64, String> {
    number(text, "a number above 0", |value| {
        value > 0.0 && value.is_finite()
    })
}

/// Reads a probability, below 1.
///
/// # Errors
/// As [`count`].
pub fn probability(text: &str) -> Result<f64, String> {
    number(text, "at least 0 and below 1", |value| {
        (0.0..1.0).contains(&value)
    })
}

/// Reads a share of a whole, of which something is left.
///
/// # Errors
/// As [`count`].
pub fn share(text: &str) -> Result<f64, String> {
    number(text, "above 0 and below 1", |value| {
        value > 0.0 && value < 1.0
    })
}

/// Reads a number from 0 to 0.5.
///
/// # Errors
/// As [`count`].
pub fn up_to_half(text: &str) -> Result<f64, String> {
    number(text, "from 0 to 0.5", |value| (0.0..=0.5).contains(&value))
}

fn number(text: &str, must_be: &str, is: impl Fn(f64) -> bool) -> Result<f64, String> {
    let value = text.parse().ok().filter(|&value| is(value));
    value.ok_or_else(|| format!("it must be {must_be}"))
}

/// What is adapted and what is trained, with PEFT's names.
#[derive(Clone, Debug, Args)]
pub struct LoraArgs {
    /// Rank of the low-rank updates
    #[arg(long, default_value_t = 8, value_parser = count)]
    pub rank: usize,
    /// Numerator of their scaling alpha / rank [default: the rank]
    #[arg(long, value_parser = positive)]
    pub alpha: Option<f64>,
    /// Layers to adapt: ends of their paths, separated by commas, or all-linear [default: the
    /// model's own choice]
    #[arg(
        long,
        visible_aliases = ["target", "targets"],
        value_name = "NAMES",
        value_delimiter = ','
    )]
    pub target_modules: Vec<String>,
    /// Layers to adapt: a regular expression for whole paths
    #[arg(long, value_name = "REGEX", conflicts_with = "target_modules")]
    pub target_regex: Option<String>,
    /// Layers or modules to train in full: ends of their paths, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub modules_to_save: Vec<String>,
    /// Biases to train
    #[arg(long, value_enum, default_value_t = Bias::None)]
    pub bias: Bias,
    /// Split updates into direction and length, as DoRA does
    #[arg(long)]
    pub dora: bool,
}

/// Which biases are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Bias {
    /// No bias
    None,
    /// Those of the adapted layers
    #[value(alias = "lora-only")]
    LoraOnly,
    /// Every bias of the model
    All,
}

impl LoraArgs {
    /// The configuration that they ask for.
    pub fn config(&self) -> LoraConfig {
        let config = LoraConfig::new(self.rank)
            .alpha(self.alpha.unwrap_or(self.rank as f64))
            .use_dora(self.dora)
            .train_bias(match self.bias {
                Bias::None => TrainBias::None,
                Bias::LoraOnly => TrainBias::LoraOnly,
                Bias::All => TrainBias::All,
            });
        let config = match (&self.target_regex, self.target_modules.as_slice()) {
            (Some(regex), _) => config.target_modules(regex.as_str()),
            (None, []) => config,
            // A word of PEFT's, not a name.
            (None, [word]) if word.eq_ignore_ascii_case("all-linear") => {
                config.target_modules(word.as_str())
            }
            (None, names) => config.target_modules(names.to_vec()),
        };
        config.modules_to_save(self.modules_to_save.clone())
    }
}

/// Adds modules to those that are trained in full.
pub fn train_in_full<'a>(
    mut config: LoraConfig,
    modules: impl IntoIterator<Item = &'a str>,
) -> LoraConfig {
    for module in modules {
        if !config.modules_to_save.iter().any(|known| known == module) {
            config.modules_to_save.push(module.into());
        }
    }
    config
}
