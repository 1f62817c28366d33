//! How surprised a language model is.

/// The perplexity of a text over many batches: e to the mean loss of a token. A model that guesses
/// among n tokens has n.
///
/// The mean is over tokens, not over batches, which may differ in length.
///
/// ```
/// let mut perplexity = lora::metrics::Perplexity::new();
/// perplexity.add(2f64.ln(), 30);
/// perplexity.add(8f64.ln(), 60);
/// assert!((perplexity.loss() - 32f64.ln() / 3.0 * 7.0 / 5.0).abs() < 1e-12);
/// assert!((perplexity.value() - 2f64.powf(7.0 / 3.0)).abs() < 1e-12);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perplexity {
    sum: f64,
    tokens: usize,
}

impl Perplexity {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a batch: its mean loss, and how many tokens that is the mean of: the labels that count.
    pub fn add(&mut self, mean_loss: f64, tokens: usize) {
        if tokens > 0 {
            self.sum += mean_loss * tokens as f64;
            self.tokens += tokens;
        }
    }

    /// The mean loss of a token; NaN before the first.
    pub fn loss(&self) -> f64 {
        self.sum / self.tokens as f64
    }

    /// The perplexity; NaN before the first token.
    pub fn value(&self) -> f64 {
        self.loss().exp()
    }

    /// Number of tokens so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}
