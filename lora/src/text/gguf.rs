//! A tokenizer in a GGUF file's metadata, as `tokenizer.json` has it.

use crate::error::shorten;
use crate::gguf::GgufFile;
use crate::gguf::header::Field;
use crate::{Error, Result};
use serde_json::{Map, Value, json};

/// What ends in a file's list of types: a token that stands for itself, special or not.
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

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

/// The contents of `tokenizer.json`, and those of `tokenizer_config.json`.
pub(super) fn files(file: &GgufFile) -> Result<(Value, Map<String, Value>)> {
    let failed = |problem: String| Error::file(file.path(), problem);
    let kind = file.text("tokenizer.ggml.model").unwrap_or("missing");
    if kind != "gpt2" {
        return Err(failed(format!(
            "has a tokenizer of the kind \"{}\" (`tokenizer.ggml.model`): only gpt2 is read. Read the \
             tokenizer of the model's directory",
            shorten(kind)
        )));
    }
    let pre = file.text("tokenizer.ggml.pre").unwrap_or("default");
    let cut = CUTS.iter().find(|cut| cut.names.contains(&pre));
    let Some(cut) = cut else {
        let known: Vec<&str> = CUTS.iter().flat_map(|cut| cut.names).copied().collect();
        return Err(failed(format!(
            "cuts texts as \"{}\" does (`tokenizer.ggml.pre`): known are {}. Read the tokenizer of the \
             model's directory",
            shorten(pre),
            known.join(", ")
        )));
    };
    let texts = |key: &str| match file.fields.get(key) {
        Some(Field::Texts(texts)) => Ok(texts),
        _ => Err(failed(format!("has no list of texts `{key}`"))),
    };
    let tokens = texts("tokenizer.ggml.tokens")?;
    let types = match file.fields.get("tokenizer.ggml.token_type") {
        Some(Field::Numbers(types)) => types.as_slice(),
        _ => &[],
    };
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(failed(format!(
            "has {} tokens and {} types of tokens",
            tokens.len(),
            types.len()
        )));
    }
    let vocabulary: Map<String, Value> =
        tokens.iter().cloned().zip((0..).map(Value::from)).collect();
    if vocabulary.len() != tokens.len() {
        return Err(failed(
            "has a token twice in `tokenizer.ggml.tokens`".into(),
        ));
    }
    let added = types
        .iter()
        .zip(tokens)
        .zip(0..)
        .filter_map(|((kind, content), id)| {
            let special = *kind == CONTROL;
            (special || *kind == USER_DEFINED).then(|| {
                json!({"id": id, "content": content, "special": special, "normalized": false,
                   "single_word": false, "lstrip": false, "rstrip": false})
            })
        });
    let added: Vec<Value> = added.collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": cut.composes.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": cut.to_json(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                    "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": texts("tokenizer.ggml.merges")?,
                  "ignore_merges": cut.ignore_merges},
    });
    Ok((tokenizer, config(file, tokens)?))
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

/// What the metadata say of special tokens and chats, in the words of `tokenizer_config.json`.
fn config(file: &GgufFile, tokens: &[String]) -> Result<Map<String, Value>> {
    let mut config = Map::new();
    for (key, name) in [
        ("bos", "bos_token"),
        ("eos", "eos_token"),
        ("unknown", "unk_token"),
        ("padding", "pad_token"),
        ("seperator", "sep_token"),
        ("mask", "mask_token"),
    ] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        let Some(Field::Unsigned(id)) = file.fields.get(&key) else {
            continue;
        };
        let token = usize::try_from(*id).ok().and_then(|id| tokens.get(id));
        let Some(token) = token else {
            let problem = format!("has `{key}` {id}, but {} tokens", tokens.len());
            return Err(Error::file(file.path(), problem));
        };
        config.insert(name.into(), token.as_str().into());
    }
    for name in ["add_bos_token", "add_eos_token"] {
        let adds = file.fields.get(&format!("tokenizer.ggml.{name}"));
        config.insert(name.into(), (adds == Some(&Field::Flag(true))).into());
    }
    if let Some(template) = file.text("tokenizer.chat_template") {
        config.insert("chat_template".into(), template.into());
    }
    Ok(config)
}
