//! How tokens are chosen: the options of `lora generate` and `lora chat`.

use anyhow::{Result, bail};
use clap::Args;
use lora::models::generate::Settings;

/// The most tokens of an answer that can be asked for.
const MOST_TOKENS: u64 = 1_000_000;

/// How tokens are chosen, and when to stop.
#[derive(Clone, Debug, Args)]
pub struct Sampling {
    /// Most tokens to write for a prompt
    #[arg(long, value_name = "NUMBER", default_value_t = 256,
        value_parser = clap::value_parser!(u64).range(1..=MOST_TOKENS))]
    max_tokens: u64,
    /// Below 1 for likely tokens, above 1 for variety; 0 takes the likeliest each time [default: as the
    /// model was published, else 0]
    #[arg(long, value_name = "NUMBER", value_parser = at_least_0, allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Draw from this many of the likeliest tokens only
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    top_k: Option<u64>,
    /// Draw from the likeliest tokens only that together have this probability
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Draw from tokens only with at least this share of the likeliest one's probability
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    min_p: Option<f64>,
    /// Above 1, tokens that are there already become less likely
    #[arg(long, value_name = "NUMBER", value_parser = above_0, allow_negative_numbers = true)]
    repetition_penalty: Option<f64>,
    /// End in front of this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Seed of what is drawn; the n-th prompt or answer has this seed + n − 1
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
}

impl Sampling {
    /// The settings that a model was published with, changed as the options say.
    ///
    /// # Errors
    /// If an option has no effect, as nothing is drawn.
    pub fn settings(&self, published: Settings) -> Result<Settings> {
        let mut settings = published.seed(self.seed);
        settings.max_new_tokens = usize::try_from(self.max_tokens)?;
        settings.temperature = self.temperature.unwrap_or(settings.temperature);
        let top_k = self.top_k.map(usize::try_from).transpose()?;
        if settings.temperature == 0.0 {
            let of_draws = [
                ("--top-k", top_k.is_some()),
                ("--top-p", self.top_p.is_some()),
                ("--min-p", self.min_p.is_some()),
            ];
            if let Some((flag, _)) = of_draws.iter().find(|(_, given)| *given) {
                bail!(
                    "{flag} has no effect: the temperature is 0, which takes the likeliest token each time. \
                     Say --temperature 0.8, for example, or leave {flag} out"
                );
            }
        }
        settings.top_k = top_k.or(settings.top_k);
        settings.top_p = self.top_p.or(settings.top_p);
        settings.min_p = self.min_p.or(settings.min_p);
        settings.repetition_penalty = self
            .repetition_penalty
            .unwrap_or(settings.repetition_penalty);
        settings.stop_strings.extend(self.stop.iter().cloned());
        Ok(settings)
    }
}

fn at_least_0(text: &str) -> Result<f64, String> {
    number(text, "0 or more", |value| value >= 0.0)
}

fn above_0(text: &str) -> Result<f64, String> {
    number(text, "a number above 0", |value| value > 0.0)
}

fn share(text: &str) -> Result<f64, String> {
    number(text, "above 0 and at most 1", |value| {
        value > 0.0 && value <= 1.0
    })
}

fn number(text: &str, must_be: &str, is: impl Fn(f64) -> bool) -> Result<f64, String> {
    let value = text.parse().ok();
    let value = value.filter(|value: &f64| value.is_finite() && is(*value));
    value.ok_or_else(|| format!("it must be {must_be}"))
}
