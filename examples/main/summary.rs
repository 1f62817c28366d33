//! Prints the layers and parameters of a LoRA model; see `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lora_examples::summary::main()
}
