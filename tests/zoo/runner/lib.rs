//! What the runs of `../runs` share: the program of one model runs it at a tiny size, and prints a
//! line of JSON that says of each stage what went wrong, if anything did.

mod changed;
mod checks;
mod numbers;
mod paths;
mod peft;
pub mod prelude;
mod random;

pub use checks::check;
pub use peft::{Data, Peft, peft};

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::VarBuilder;
use lora::{Lora, LoraModel};
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};

/// A model at a tiny size, and one pass over it: a file of `../runs`.
pub trait Run {
    type Model: LoraModel;
    /// Layers that the pass cannot reach. A `*` stands for anything.
    const UNREACHED: &'static [&'static str];

    fn build(vb: VarBuilder<'_>) -> Result<Self::Model>;

    /// The loss by the base model.
    fn base(model: &mut Self::Model) -> Result<Tensor>;

    /// The loss by the LoRA model: the same code.
    fn lora(model: &mut Lora<Self::Model>) -> Result<Tensor>;
}

/// Writes a body once for the base model and once for the LoRA model.
#[macro_export]
macro_rules! run {
    (|$model:ident| $body:block $(, unreached: [$($layer:literal),+ $(,)?])? $(,)?) => {
        pub struct Run;

        impl $crate::Run for Run {
            type Model = Model;
            const UNREACHED: &'static [&'static str] = &[$($($layer),+)?];

            fn build(vb: VarBuilder<'_>) -> Result<Self::Model> {
                build(vb)
            }

            fn base($model: &mut Self::Model) -> Result<Tensor> $body

            fn lora($model: &mut ::lora::Lora<Self::Model>) -> Result<Tensor> $body
        }
    };
}

/// What became of each stage: nothing, or what went wrong.
#[derive(Default)]
pub struct Report(BTreeMap<&'static str, Option<String>>);

impl Report {
    /// Runs a stage. Its result is there for the next ones, if it has one.
    fn stage<T>(&mut self, name: &'static str, f: impl FnOnce() -> Result<T>) -> Option<T> {
        let result = match panic::catch_unwind(AssertUnwindSafe(f)) {
            Ok(result) => result.map_err(|error| format!("{error:#}")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                Err(format!("panics: {}", text.unwrap_or("")))
            }
        };
        self.0.insert(name, result.as_ref().err().cloned());
        result.ok()
    }
}

/// The program of a model. Debug builds of deep models want room on the stack.
pub fn main(f: impl FnOnce(&mut Report) + Send + 'static) {
    panic::set_hook(Box::new(|_| {}));
    let run = move || {
        let mut report = Report::default();
        f(&mut report);
        report
    };
    let thread = std::thread::Builder::new().stack_size(1 << 28).spawn(run);
    let report = thread.ok().and_then(|thread| thread.join().ok());
    let stages = report.unwrap_or_default().0;
    println!("{}", serde_json::json!(stages));
}
