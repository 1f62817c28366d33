//! SentencePiece's BPE: pairs whose token has the best score are merged first; what has no token becomes
//! bytes.
//!
//! llama.cpp and transformers' converters agree: the order of merges is that of the scores.

use super::{NORMAL, UNUSED, Vocabulary};
use crate::gguf::header::Field;
use serde_json::{Value, json};
use std::collections::HashMap;

/// What stands for a space.
const SPACE: &str = "▁";

/// No token is longer: all cuts of each are looked up.
const LONGEST: usize = 1 << 10;

/// The parts of `tokenizer.json` that this kind has.
pub(super) fn parts(vocabulary: &Vocabulary<'_>) -> Result<Value, String> {
    let merges = match vocabulary.texts("tokenizer.ggml.merges") {
        Ok(merges) => json!(merges),
        Err(_) => merges(vocabulary)?,
    };
    let has_prefix = has_prefix(vocabulary);
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", SPACE)];
    let mut decoders = vec![
        replace(SPACE, " "),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if has_prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = vocabulary.special("unknown", Some(0))?;
    let has_bytes = vocabulary.tokens.iter().any(|token| token == "<0x00>");
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "vocab": vocabulary.to_json(), "merges": merges,
                  "unk_token": unknown.map(|token| &vocabulary.tokens[token]),
                  "fuse_unk": true, "byte_fallback": has_bytes},
    }))
}

/// Whether a space comes in front of a text, as if it followed a word. Gemma has none.
fn has_prefix(vocabulary: &Vocabulary<'_>) -> bool {
    let file = vocabulary.file;
    let says = |key: &str| file.text(key).is_some_and(|text| text.starts_with("gemma"));
    match file.fields.get("tokenizer.ggml.add_space_prefix") {
        Some(Field::Flag(has_prefix)) => *has_prefix,
        _ => !says("general.architecture") && !says("tokenizer.ggml.pre"),
    }
}

/// The pairs that make each token, those of the best token first: what transformers' converters derive.
fn merges(vocabulary: &Vocabulary<'_>) -> Result<Value, String> {
    let scores = match vocabulary.file.fields.get("tokenizer.ggml.scores") {
        Some(Field::Numbers(scores)) => scores,
        _ => return Err("has neither `tokenizer.ggml.scores` nor `tokenizer.ggml.merges`".into()),
    };
    if scores.len() != vocabulary.tokens.len() || scores.iter().any(|score| score.is_nan()) {
        return Err(format!(
            "has {} tokens and {} scores, each of which must be a number",
            vocabulary.tokens.len(),
            scores.len()
        ));
    }
    let tokens = vocabulary.tokens.iter().enumerate();
    // Others are found in a text before anything is merged, or stand for bytes.
    let tokens = tokens.filter(|(id, _)| [NORMAL, UNUSED].contains(&vocabulary.kind(*id)));
    let normal: HashMap<&str, usize> = tokens.map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (&token, &id) in &normal {
        if token.len() > LONGEST {
            let length = token.len();
            return Err(format!(
                "has a token of {length} bytes: at most {LONGEST} are possible"
            ));
        }
        let cuts = token.char_indices().skip(1);
        for (left, right) in cuts.map(|(cut, _)| token.split_at(cut)) {
            if normal.contains_key(left) && normal.contains_key(right) {
                merges.push((scores[id], id, left, right));
            }
        }
    }
    // Of the pairs of one token, the one with the longest left half goes first.
    merges.sort_by(|a, b| {
        let score = b.0.total_cmp(&a.0);
        score.then(a.1.cmp(&b.1)).then(b.2.len().cmp(&a.2.len()))
    });
    let pairs = merges
        .into_iter()
        .map(|(_, _, left, right)| json!([left, right]));
    Ok(pairs.collect())
}
