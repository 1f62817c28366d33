//! Adapts an image classifier to new images with LoRA; see `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lora_examples::finetune::main()
}
