//! Trains the base model of the `finetune` example; see `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lora_examples::pretrain::main()
}
