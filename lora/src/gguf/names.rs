//! llama.cpp's names of a model's weights.

use super::archs::Arch;
use crate::path::join;

/// The embedding, whose A is stored with a row for each token.
pub(crate) const TOKENS: &str = "token_embd";

/// The head.
pub(crate) const HEAD: &str = "output";

/// Where llama.cpp keeps the update of a module, or a part of it.
#[derive(Debug, PartialEq)]
pub(crate) struct Place {
    /// The weight's name, without `.weight`.
    pub(crate) name: String,
    /// The expert's number in a weight of all experts.
    pub(crate) expert: Option<usize>,
}

/// The weight of a layer without the layer's number: `attn_q` for `blk.3.attn_q`.
pub(crate) fn kind(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// True for a weight that holds all experts.
pub(crate) fn is_of_experts(name: &str) -> bool {
    kind(name).ends_with("_exps")
}

/// A path as the architecture has it. Models of text and images have a part more, encoders a part
/// more where they have a head.
fn inner(arch: &Arch, path: &str) -> String {
    if arch.head.is_empty() {
        let known =
            [arch.layers, arch.tokens].map(|place| place.split('.').next().unwrap_or(place));
        return match path.split_once('.') {
            Some((first, rest)) if !known.contains(&first) => rest.into(),
            _ => path.into(),
        };
    }
    match path.strip_prefix("model.language_model.") {
        Some(rest) => format!("model.{rest}"),
        None => path.strip_prefix("language_model.").unwrap_or(path).into(),
    }
}

/// `blk.3.attn_q` for `model.layers.3.self_attn.q_proj`. None where the module is not known; several
/// where llama.cpp has its outputs in several weights.
pub(crate) fn to_gguf(arch: &Arch, path: &str) -> Vec<Place> {
    let path = inner(arch, path);
    for (name, module) in [(TOKENS, arch.tokens), (HEAD, arch.head)] {
        if path == module {
            let (name, expert) = (name.into(), None);
            return vec![Place { name, expert }];
        }
    }
    let behind = path.strip_prefix(arch.layers);
    let behind = behind.and_then(|rest| rest.strip_prefix('.')?.split_once('.'));
    let Some((number, module)) = behind.filter(|(number, _)| is_number(number)) else {
        return Vec::new();
    };
    let places = arch.names().filter_map(|(name, known)| {
        let expert = matches(known, module)?;
        let name = format!("blk.{number}.{name}");
        Some(Place { name, expert })
    });
    places.collect()
}

/// Whether a module has this name, and the number at its `*`.
fn matches(known: &str, module: &str) -> Option<Option<usize>> {
    let Some((before, behind)) = known.split_once('*') else {
        return (known == module).then_some(None);
    };
    let number = module.strip_prefix(before)?.strip_suffix(behind)?;
    is_number(number).then(|| number.parse().ok())
}

/// `model.layers.3.self_attn.q_proj` for `blk.3.attn_q`, with `*` for the number of an expert.
pub(crate) fn from_gguf(arch: &Arch, name: &str) -> Option<String> {
    match name {
        TOKENS => return Some(arch.tokens.into()),
        HEAD => return (!arch.head.is_empty()).then(|| arch.head.into()),
        _ => {}
    }
    let (number, name) = name.strip_prefix("blk.")?.split_once('.')?;
    let (_, module) = arch.names().find(|(known, _)| *known == name)?;
    is_number(number).then(|| join(&join(arch.layers, number), module))
}

/// Digits without a leading zero, so that a number has one name.
fn is_number(text: &str) -> bool {
    let digits = !text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit());
    digits && (text == "0" || !text.starts_with('0'))
}

#[cfg(test)]
mod tests {
    use super::super::archs::{ARCHS, named};
    use super::*;

    fn places(arch: &str, path: &str) -> Vec<(String, Option<usize>)> {
        let places = to_gguf(named(arch).unwrap(), path).into_iter();
        places.map(|place| (place.name, place.expert)).collect()
    }

    fn one(name: &str) -> Vec<(String, Option<usize>)> {
        vec![(name.into(), None)]
    }

    #[test]
    fn names_go_both_ways() {
        let llama = named("llama").unwrap();
        for (name, path) in [
            ("blk.0.attn_q", "model.layers.0.self_attn.q_proj"),
            ("blk.31.attn_output", "model.layers.31.self_attn.o_proj"),
            ("blk.7.ffn_down", "model.layers.7.mlp.down_proj"),
            ("token_embd", "model.embed_tokens"),
            ("output", "lm_head"),
        ] {
            assert_eq!(places("llama", path), one(name));
            assert_eq!(from_gguf(llama, name).as_deref(), Some(path));
        }
        let text = "model.language_model.layers.2.mlp.up_proj";
        assert_eq!(places("llama", text), one("blk.2.ffn_up"));
        for name in [
            "",
            "blk.",
            "blk.0",
            "blk.00.attn_q",
            "blk.-1.attn_q",
            "blk.x.attn_q",
        ] {
            assert_eq!(from_gguf(llama, name), None, "{name}");
        }
        for path in [
            "fc1",
            "layers.0.mlp.up_proj",
            "model.layers.0.mlp",
            "model.layers.1.mlp.x",
            "model.layers.1.mlp.experts.x.up_proj",
            "model.layers.1.mlp.experts.01.up_proj",
        ] {
            assert_eq!(places("llama", path), [], "{path}");
        }
    }

    #[test]
    fn experts_have_a_number_and_encoders_a_part_more() {
        let expert = "model.layers.4.mlp.experts.17.up_proj";
        let expected = [("blk.4.ffn_up_exps".to_string(), Some(17))];
        assert_eq!(places("qwen3moe", expert), expected);
        assert!(is_of_experts("blk.4.ffn_up_exps") && !is_of_experts("blk.4.ffn_up_shexp"));
        for prefix in ["", "bert.", "roberta."] {
            let path = format!("{prefix}encoder.layer.1.attention.self.key");
            assert_eq!(places("bert", &path), one("blk.1.attn_k"));
        }
        let parts = places("internlm2", "model.layers.0.attention.wqkv");
        let names: Vec<_> = parts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"]);
    }

    /// No architecture is listed twice, and no module has two names but InternLM2's.
    #[test]
    fn the_table_is_clear() {
        for arch in ARCHS {
            assert_eq!(
                ARCHS.iter().filter(|other| other.name == arch.name).count(),
                1
            );
            for (_, module) in arch.names() {
                let count = arch.names().filter(|(_, other)| other == module).count();
                let expected = if *module == "attention.wqkv" { 3 } else { 1 };
                assert_eq!(count, expected, "{} {module}", arch.name);
            }
        }
        assert!(ARCHS.len() >= 25);
    }
}
