//! Measures a training step and a forward pass; see `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lora_examples::step_bench::main()
}
