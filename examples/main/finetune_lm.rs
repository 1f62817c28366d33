//! Tunes a language model to a text with LoRA; see `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lora_examples::finetune_lm::main()
}
