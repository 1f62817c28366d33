//! Trains the base model of the examples about text; see `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lora_examples::pretrain_text::main()
}
