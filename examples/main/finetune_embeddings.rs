//! Tunes an encoder of sentences to a search with LoRA; see `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lora_examples::finetune_embeddings::main()
}
