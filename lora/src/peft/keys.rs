//! The keys of an adapter's tensors in a file: PEFT's prefix, its wrappers and copies of modules,
//! and which part of which module a key is.
//!
//! The names of the parts themselves are those of the parameters, see [`Part`].

use crate::adapter::Part;
use crate::config::matching::{is_bias, is_or_ends_with};
use crate::path::join;

/// What PEFT puts before the path of every module of the base model.
const PREFIX: &str = "base_model.model.";

/// The name of the base's own module inside PEFT's.
const BASE_LAYER: &str = "base_layer";

/// Names that a language model's embedding has.
const EMBEDDINGS: [&str; 7] = [
    "embed_tokens",
    "wte",
    "word_embeddings",
    "tok_embeddings",
    "embed_in",
    "embeddings",
    "shared",
];

/// Puts the prefix before a key, as the file has it.
pub(super) fn with_prefix(key: &str) -> String {
    format!("{PREFIX}{key}")
}

/// Takes the prefix off a key of the file. PEFT leaves the prefix out where it was applied to the
/// inner model.
pub(super) fn without_prefix(key: &str) -> &str {
    key.strip_prefix(PREFIX).unwrap_or(key)
}

/// The key of a part of the adapter at this path.
pub(super) fn part(path: &str, part: Part, of_lookup: bool) -> String {
    join(path, &part.key(of_lookup))
}

/// Splits a key without the prefix: the path, the part, and whether the part has the name that it
/// has in an embedding.
pub(super) fn parse(key: &str) -> Option<(&str, Part, bool)> {
    let names = Part::ALL
        .into_iter()
        .flat_map(|part| [(part, false), (part, true)]);
    for (part, of_lookup) in names {
        let end = part.key(of_lookup);
        if key == end {
            return Some(("", part, of_lookup));
        }
        let path = key
            .strip_suffix(&end)
            .and_then(|path| path.strip_suffix('.'));
        if let Some(path) = path {
            return Some((path, part, of_lookup));
        }
    }
    None
}

/// The key of an adapted layer's own parameter.
pub(super) fn of_base(path: &str, name: &str) -> String {
    join(&join(path, BASE_LAYER), name)
}

/// The path of the adapted layer, if this key is that of the layer's own weight.
pub(super) fn path_of_base_weight(key: &str) -> Option<&str> {
    let path = key.strip_suffix(".weight")?.strip_suffix(BASE_LAYER)?;
    path.strip_suffix('.').or(path.is_empty().then_some(path))
}

/// True for the key of an adapted layer's own parameter.
pub(super) fn is_of_base(key: &str) -> bool {
    let mut segments = key.split('.');
    segments.any(|segment| segment == BASE_LAYER)
}

/// A path inside one more of PEFT's wrappers.
pub(super) fn wrapped(path: &str) -> String {
    join(path, BASE_LAYER)
}

/// A path without PEFT's wrappers.
pub(super) fn without_wrappers(path: &str) -> String {
    let parts = path.split('.').filter(|part| *part != BASE_LAYER);
    parts.collect::<Vec<_>>().join(".")
}

/// The module and the number of wrappers that directly follow it: `experts`, 2 for
/// `experts.base_layer.base_layer`.
pub(super) fn wrappers_behind(path: &str) -> (&str, usize) {
    let (mut path, mut count) = (path, 0);
    while let Some(inner) = path.strip_suffix(BASE_LAYER) {
        path = inner.strip_suffix('.').unwrap_or(inner);
        count += 1;
    }
    (path, count)
}

/// The attention layer, if this path of an adapter is that of its output projection.
pub(super) fn owner_of_projection(path: &str) -> Option<&str> {
    let inner = path.strip_suffix("out_proj")?.strip_suffix('.')?;
    let owner = inner.strip_suffix(BASE_LAYER)?;
    Some(owner.trim_end_matches('.'))
}

/// True for a parameter in one of PEFT's two copies of a fully trained module. `rest` is the key
/// behind the module's path.
pub(super) fn is_of_copy(rest: &str) -> bool {
    let copies = ["modules_to_save.", "original_module."];
    copies.iter().any(|copy| rest.starts_with(copy))
}

/// True for a bias in one of the copies: with `bias="all"` the file holds both.
pub(super) fn is_bias_of_copy(rest: &str) -> bool {
    is_bias(rest) && is_of_copy(rest)
}

/// True for the weight of a language model's embedding.
pub(super) fn is_embedding(name: &str) -> bool {
    let module = name.strip_suffix(".weight");
    module.is_some_and(|module| {
        EMBEDDINGS
            .iter()
            .any(|embedding| is_or_ends_with(module, embedding))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_what_they_are() {
        assert_eq!(parse("a.fc.lora_A.weight"), Some(("a.fc", Part::A, false)));
        assert_eq!(parse("wte.lora_embedding_B"), Some(("wte", Part::B, true)));
        assert_eq!(parse("fc.lora_B.bias"), Some(("fc", Part::Bias, false)));
        assert_eq!(parse("lora_A.weight"), Some(("", Part::A, false)));
        for key in [
            "fc.lora_A",
            "fcxlora_A.weight",
            "fc.weight",
            "fc.xlora_A.weight",
        ] {
            assert_eq!(parse(key), None, "{key}");
        }
        for kind in [false, true] {
            for kept in Part::ALL {
                let key = part("x.y", kept, kind);
                let (path, found, _) = parse(&key).unwrap();
                assert_eq!((path, found), ("x.y", kept));
            }
        }
    }

    #[test]
    fn wrappers_are_taken_off() {
        assert_eq!(without_wrappers("a.base_layer.b.base_layer"), "a.b");
        assert_eq!(wrappers_behind("a.base_layer.base_layer"), ("a", 2));
        assert_eq!(
            path_of_base_weight("a.wte.base_layer.weight"),
            Some("a.wte")
        );
        assert_eq!(path_of_base_weight("a.wte.weight"), None);
        assert_eq!(owner_of_projection("mha.base_layer.out_proj"), Some("mha"));
    }
}
