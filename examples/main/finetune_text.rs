//! Tunes an encoder to tell texts apart with LoRA; see `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lora_examples::finetune_text::main()
}
