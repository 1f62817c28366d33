//! Byte-level BPE: a text is cut into pieces, and the bytes of each are merged.

use super::Vocabulary;
use crate::error::shorten;
use serde_json::{Value, json};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a text is cut before pairs are merged, by llama.cpp's name of it.
struct Cut {
    names: &'static [&'static str],
    /// The expression of the pieces; GPT-2's, if `None`.
    pieces: Option<&'static str>,
    /// Each digit is a piece.
    digits: bool,
    /// A text that is a token needs no merges.
    ignore_merges: bool,
    /// Characters are composed (NFC).
    composes: bool,
}

const CUTS: [Cut; 4] = [
    Cut {
        names: &["default", "gpt-2", "phi-2", "olmo", "dbrx-gpt2", "mpt"],
        pieces: None,
        digits: false,
        ignore_merges: false,
        composes: false,
    },
    Cut {
        names: &["smollm", "starcoder", "refact", "command-r"],
        pieces: None,
        digits: true,
        ignore_merges: false,
        composes: false,
    },
    Cut {
        names: &["llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"],
        pieces: Some(LLAMA3),
        digits: false,
        ignore_merges: true,
        composes: false,
    },
    Cut {
        names: &["qwen2", "deepseek-r1-qwen"],
        pieces: Some(QWEN2),
        digits: false,
        ignore_merges: false,
        composes: true,
    },
];

/// The parts of `tokenizer.json` that this kind has.
pub(super) fn parts(vocabulary: &Vocabulary<'_>) -> Result<Value, String> {
    let pre = vocabulary
        .file
        .text("tokenizer.ggml.pre")
        .unwrap_or("default");
    let Some(cut) = CUTS.iter().find(|cut| cut.names.contains(&pre)) else {
        let known: Vec<&str> = CUTS.iter().flat_map(|cut| cut.names).copied().collect();
        return Err(format!(
            "cuts texts as \"{}\" does (`tokenizer.ggml.pre`): known are {}. Read the tokenizer of the \
             model's directory",
            shorten(pre),
            known.join(", ")
        ));
    };
    Ok(json!({
        "normalizer": cut.composes.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": cut.to_json(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                    "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary.to_json(),
                  "merges": vocabulary.texts("tokenizer.ggml.merges")?,
                  "ignore_merges": cut.ignore_merges},
    }))
}

impl Cut {
    fn to_json(&self) -> Value {
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                           "use_regex": self.pieces.is_none()});
        let first = match self.pieces {
            Some(pieces) => json!({"type": "Split", "pattern": {"Regex": pieces},
                                   "behavior": "Isolated", "invert": false}),
            None if self.digits => json!({"type": "Digits", "individual_digits": true}),
            None => return bytes,
        };
        json!({"type": "Sequence", "pretokenizers": [first, bytes]})
    }
}
