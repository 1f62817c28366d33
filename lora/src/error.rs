//! The crate's error: what went wrong, where in the model or which file, and what to do.

use std::fmt;
use std::path::PathBuf;

/// Everything that can go wrong in this crate.
///
/// A variant that is about a whole model or a whole file lists every problem found, not only the
/// first. The error converts into [`candle_core::Error`], so `?` works in functions that return
/// candle's `Result`.
///
/// [`Debug`](fmt::Debug) prints what [`Display`](fmt::Display) does: a `main` that returns the error
/// shows its causes and its fix.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A LoRA configuration that is invalid by itself or does not fit the model.
    #[error("the LoRA configuration does not fit:{}", list(.0))]
    Config(Vec<String>),

    /// A layer that cannot do what was asked.
    #[error("{}: {message}", if .path.is_empty() { "layer" } else { .path })]
    Layer {
        /// Path of the layer in its model; empty for a layer that stands alone.
        path: String,
        /// What is wrong and how to mend it.
        message: String,
    },

    /// Trainable parameters that the backward pass did not reach.
    #[error(
        "{} of the model's {trainable} trainable parameters got no gradient:{}\n{}",
        .paths.len(), list(.paths), CAUSES
    )]
    NoGradient {
        /// Paths of the parameters without a gradient.
        paths: Vec<String>,
        /// Number of trainable parameters in the model.
        trainable: usize,
    },

    /// Layers whose gradient is not the slope of the loss. See
    /// [`check_gradients`](crate::LoraModule::check_gradients).
    #[error("the gradient is wrong, among {checked} layers with trainable parameters:{}\n{}", list(.layers), CUTS)]
    WrongGradient {
        /// A line for each layer: its path, and what the gradient and the loss say.
        layers: Vec<String>,
        /// Number of layers with trainable parameters.
        checked: usize,
    },

    /// A loss or a gradient that holds NaN or infinity. A step would write NaN into the weights.
    #[error("{0} is not finite: no step was taken\n{NOT_FINITE}")]
    NotFinite(String),

    /// Weights that do not fit the model.
    #[error("the weights do not fit the model:{}", list(.0))]
    Weights(Vec<String>),

    /// A call that a model's adapters do not allow.
    #[error("the model's adapters:{}", list(.0))]
    Adapter(Vec<String>),

    /// A file that cannot be read, written or understood.
    #[error("{}:{}", .path.display(), list(.problems))]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Everything wrong with it.
        problems: Vec<String>,
    },

    /// An argument or a state that an optimiser, or one of its helpers, cannot work with.
    #[error("the optimiser:{}", list(.0))]
    Optimizer(Vec<String>),

    /// Training that cannot begin or go on: options, data, checkpoints that do not fit.
    #[error("the training:{}", list(.0))]
    Training(Vec<String>),

    /// Generating tokens: settings, prompts or logits that cannot be used.
    #[error("the generation:{}", list(.0))]
    Generation(Vec<String>),

    /// Training data that cannot be used: records, lengths, the state of batches.
    #[error("the data:{}", list(.0))]
    Data(Vec<String>),

    /// A chat template that refuses a conversation or is damaged, or a text that has no tokens.
    #[error("the text:{}", list(.0))]
    Text(Vec<String>),

    /// A name that no model has.
    #[error("no model is called `{name}`{}", suggest(.near))]
    UnknownModel {
        /// The name asked for.
        name: String,
        /// Known names that are close to it.
        near: Vec<String>,
    },

    /// An error from candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    pub(crate) fn layer(path: &str, message: impl Into<String>) -> Self {
        Self::Layer {
            path: path.into(),
            message: message.into(),
        }
    }

    /// Adds the layer's path to an error that has no path yet.
    pub(crate) fn at(self, layer: &str) -> Self {
        match self {
            Self::Layer { path, message } if path.is_empty() => Self::layer(layer, message),
            Self::Candle(error) => Self::layer(layer, error.to_string()),
            error => error,
        }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, problem: impl ToString) -> Self {
        Self::File {
            path: path.into(),
            problems: vec![problem.to_string()],
        }
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            error => Self::wrap(error),
        }
    }
}

/// What cuts a gradient, for the errors that find a cut.
macro_rules! cuts {
    () => {
        "candle's layer_norm, rms_norm, softmax_last_dim, rope, rope_i, rope_thd, sdpa and flash_attn \
record no gradient, nor do candle's own norms in a `skip` field; those of lora::ops take the same \
arguments and do
  - KvCache, RotatingKvCache and ConcatKvCache of candle cut the gradient where a method makes one; those \
of lora::ops pass the gradient, and so does a field of the model
  - detach() cuts the gradient, and so does reading values to the CPU (to_vec1, to_vec2, to_scalar) and \
building a tensor from them; lora::ops::top_k chooses experts with a gradient for the gate"
    };
}

/// The usual reasons, for [`Error::NoGradient`].
const CAUSES: &str = concat!(
    "usual causes:
  - a function between the loss and these layers records no gradient: ",
    cuts!(),
    "
  - the loss does not depend on these parameters: a branch that was not taken, an empty batch, an \
expert that the batch did not reach (`#[lora(routed)]` on the field allows that)
  - the model is in eval mode (call train()) or merged (call unmerge())"
);

/// The usual reasons, for [`Error::WrongGradient`].
const CUTS: &str = concat!(
    "usual causes, where another path leads around the cut:
  - ",
    cuts!()
);

/// The usual reasons, for [`Error::NotFinite`].
const NOT_FINITE: &str = "\
usual causes:
  - the learning rate is too high: lower it, or bound the gradients with optim::clip_grad_norm
  - a value overflows f16 or bf16: compute the loss in f32
  - the batch holds NaN or infinity, or has nothing to average over
to leave such steps out yourself: LoraModule::backward_any, and allow_non_finite(true) of the optimiser";

/// One problem stays on the line; several get a line each.
fn list(problems: &[String]) -> String {
    match problems {
        [one] => format!(" {one}"),
        many => many.iter().map(|p| format!("\n  - {p}")).collect(),
    }
}

/// Reports a setting that has no effect but does no harm: to the program's logger, or to the error
/// output where the program has none.
pub(crate) fn warn(message: &str) {
    if log::max_level() == log::LevelFilter::Off {
        eprintln!("warning: {message}");
    } else {
        log::warn!("{message}");
    }
}

/// A text from a file, cut to 80 characters for a message.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.into(),
    }
}

fn suggest(near: &[String]) -> String {
    if near.is_empty() {
        return String::new();
    }
    format!("; did you mean {}?", near.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `main` prints of an error that it returns.
    #[test]
    fn debug_is_display() {
        let error = Error::NoGradient {
            paths: vec!["fc1.lora_A.default.weight".into()],
            trainable: 2,
        };
        let boxed: Box<dyn std::error::Error> = error.into();
        let printed = format!("{boxed:?}");
        assert_eq!(printed, boxed.to_string());
        assert!(
            printed.starts_with(
                "1 of the model's 2 trainable parameters got no gradient: fc1.lora_A.default.weight\n\
                 usual causes:\n"
            ),
            "{printed}"
        );
        let inside = candle_core::Error::from(Error::NotFinite("the loss".into()));
        assert!(format!("{inside:?}").starts_with("the loss is not finite: no step was taken\n"));
    }
}
