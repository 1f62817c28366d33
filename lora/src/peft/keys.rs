//! The keys of an adapter's tensors in a file: PEFT's prefix, its wrappers and copies of modules,
//! and which part of which module a key is.
//!
//! The names of the parts themselves are those of the parameters, see [`Part`].

use crate::adapter::Part;
use crate::config::matching::{is_bias, is_or_ends_with};
use crate::config::naming::{PARALLEL, is_wrapper};
use crate::path::join;

/// What PEFT puts before the path of every module of the base model.
const PREFIX: &str = "base_model.model.";

/// PyTorch's counter of a batch norm, which computes nothing.
pub(super) const COUNTER: &str = "num_batches_tracked";

/// PEFT's two copies of a fully trained module: the trained one, and the base's.
const COPIES: [&str; 2] = ["modules_to_save", "original_module"];

/// The name of the base's own module inside PEFT's.
const BASE_LAYER: &str = "base_layer";

/// PEFT's wrapper around an embedding some rows of which are trained. The embedding inside is a
/// [`BASE_LAYER`].
const TOKEN_ADAPTER: &str = "token_adapter";

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

/// Names that the layer which gives a language model's scores has.
const HEADS: [&str; 4] = ["lm_head", "embed_out", "output", "output_layer"];

/// Puts the prefix before a key, as the file has it.
pub(super) fn with_prefix(key: &str) -> String {
    format!("{PREFIX}{key}")
}

/// Takes the prefix off a key of the file, and with it what a wrapper around PEFT's model adds.
/// PEFT leaves the prefix out where it was applied to the inner model.
pub(super) fn without_prefix(key: &str) -> &str {
    let Some(place) = key.find(PREFIX) else {
        return key;
    };
    let (outer, rest) = key.split_at(place);
    let is_outer = |segment: &str| segment.is_empty() || segment == PARALLEL || is_wrapper(segment);
    match outer.split('.').all(is_outer) {
        true => &rest[PREFIX.len()..],
        false => key,
    }
}

/// The key of a part of the adapter at this path.
pub(super) fn part(path: &str, part: Part, of_lookup: bool) -> String {
    join(path, &part.key(of_lookup))
}

/// A key of a part of an adapter, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed<'a> {
    pub path: &'a str,
    pub part: Part,
    /// The part has the name that it has in an embedding.
    pub of_lookup: bool,
    /// The adapter's name, which PEFT takes out of the keys when it saves. Tools that write a
    /// model's state as it is leave the name in.
    pub adapter: Option<&'a str>,
}

/// Takes a key without the prefix apart.
pub(super) fn parse(key: &str) -> Option<Parsed<'_>> {
    let names = Part::ALL
        .into_iter()
        .flat_map(|part| [(part, false), (part, true)]);
    for (part, of_lookup) in names {
        let (begin, end) = part.ends(of_lookup);
        // Before PEFT 0.12 the magnitude was a module of its own, with a `.weight` behind it.
        let ends = [(part == Part::Magnitude).then_some("weight"), Some(end)];
        for end in ends.into_iter().flatten() {
            if let Some((path, adapter)) = taken_apart(key, begin, end) {
                return Some(Parsed {
                    path,
                    part,
                    of_lookup,
                    adapter,
                });
            }
        }
    }
    None
}

/// The path and the adapter's name of `path.begin.end` or `path.begin.adapter.end`.
fn taken_apart<'a>(key: &'a str, begin: &str, end: &str) -> Option<(&'a str, Option<&'a str>)> {
    let rest = match end {
        "" => key,
        end => key.strip_suffix(end)?.strip_suffix('.')?,
    };
    let path = |rest: &'a str| {
        let path = rest.strip_suffix(begin)?;
        path.strip_suffix('.').or(path.is_empty().then_some(path))
    };
    if let Some(path) = path(rest) {
        return Some((path, None));
    }
    let (rest, adapter) = rest.rsplit_once('.')?;
    Some((path(rest)?, Some(adapter)))
}

/// A key without the adapter's name, and that name, if the key has one: of a part of an adapter, or
/// of PEFT's copy of a module that is trained in full.
pub(super) fn without_adapter(key: &str) -> (String, Option<&str>) {
    if let Some(parsed) = parse(key) {
        let plain = part(parsed.path, parsed.part, parsed.of_lookup);
        return (plain, parsed.adapter);
    }
    let copy = key.split_once("modules_to_save.");
    if let Some((module, rest)) = copy.filter(|(module, _)| module.ends_with('.'))
        && let Some((adapter, name)) = rest.split_once('.')
    {
        return (format!("{module}{name}"), Some(adapter));
    }
    (key.into(), None)
}

/// The key of an adapted layer's own parameter.
pub(super) fn of_base(path: &str, name: &str) -> String {
    join(&join(path, BASE_LAYER), name)
}

/// The path of the adapted layer, if this key is that of the layer's own weight.
pub(super) fn path_of_base_weight(key: &str) -> Option<&str> {
    let within = |path: &'_ str, name: &str| -> Option<usize> {
        let path = path.strip_suffix(name)?;
        match path.strip_suffix('.') {
            Some(path) => Some(path.len()),
            None => path.is_empty().then_some(0),
        }
    };
    let path = key.strip_suffix(".weight")?;
    let path = &path[..within(path, BASE_LAYER)?];
    let outer = within(path, TOKEN_ADAPTER).unwrap_or(path.len());
    Some(&path[..outer])
}

/// The keys that the own weight of a layer at this path may have.
pub(super) fn of_weight(path: &str) -> [String; 3] {
    let inside = join(path, TOKEN_ADAPTER);
    [
        of_base(path, "weight"),
        of_base(&inside, "weight"),
        join(path, "weight"),
    ]
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
    let is_wrapper = |part: &&str| *part == BASE_LAYER || *part == TOKEN_ADAPTER;
    let parts = path.split('.').filter(|part| !is_wrapper(part));
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

/// True for a second copy of what a fully trained module holds: with `bias="all"` the file holds a
/// bias of both of PEFT's copies, and a model's state as it is holds all of the base's copy. `rest`
/// is the key behind the module's path.
pub(super) fn is_of_copy(rest: &str) -> bool {
    let [trained, original] = COPIES;
    let within = |copy: &str| rest.starts_with(copy) && rest[copy.len()..].starts_with('.');
    within(original) || (within(trained) && is_bias(rest))
}

/// True for a parameter in one of PEFT's two copies of a fully trained module. `rest` is the key
/// behind the module's path.
pub(super) fn is_within_copy(rest: &str) -> bool {
    let within = |copy: &&str| rest.starts_with(copy) && rest[copy.len()..].starts_with('.');
    COPIES.iter().any(within)
}

/// A key without the names of PEFT's two copies of a fully trained module.
pub(super) fn without_copies(key: &str) -> String {
    let parts = key.split('.').filter(|part| !COPIES.contains(part));
    parts.collect::<Vec<_>>().join(".")
}

/// True for PyTorch's counter of a batch norm.
pub(super) fn is_counter(key: &str) -> bool {
    key.rsplit('.').next() == Some(COUNTER)
}

/// The key of the same parameter without PEFT's wrapper around its layer, as PEFT before 0.5 wrote
/// it: `fc.bias` for `fc.base_layer.bias`.
pub(super) fn without_wrapper_of_bias(key: &str) -> Option<String> {
    (is_bias(key) && is_of_base(key)).then(|| without_wrappers(key))
}

/// True for the weight of a language model's embedding.
pub(super) fn is_embedding(name: &str) -> bool {
    name.strip_suffix(".weight").is_some_and(is_embedding_path)
}

/// True for the path of the layer that gives a language model's scores.
pub(super) fn is_head(path: &str) -> bool {
    let mut names = HEADS.iter();
    names.any(|head| is_or_ends_with(path, head))
}

/// True for the path of a language model's embedding.
pub(super) fn is_embedding_path(path: &str) -> bool {
    let mut names = EMBEDDINGS.iter();
    names.any(|embedding| is_or_ends_with(path, embedding))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_what_they_are() {
        let found = |key| parse(key).map(|parsed| (parsed.path, parsed.part, parsed.of_lookup));
        assert_eq!(found("a.fc.lora_A.weight"), Some(("a.fc", Part::A, false)));
        assert_eq!(found("wte.lora_embedding_B"), Some(("wte", Part::B, true)));
        assert_eq!(found("fc.lora_B.bias"), Some(("fc", Part::Bias, false)));
        assert_eq!(found("lora_A.weight"), Some(("", Part::A, false)));
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
                let parsed = parse(&key).unwrap();
                assert_eq!((parsed.path, parsed.part), ("x.y", kept));
                assert_eq!(parsed.adapter, None);
            }
        }
    }

    #[test]
    fn prefixes_and_what_stands_around_them_are_taken_off() {
        for key in [
            "fc.weight",
            "base_model.model.fc.weight",
            "module.base_model.model.fc.weight",
            "_orig_mod.base_model.model.fc.weight",
            "module._orig_mod.base_model.model.fc.weight",
        ] {
            assert_eq!(without_prefix(key), "fc.weight");
        }
        for key in ["module.fc.weight", "x.base_model.model.fc.weight"] {
            assert_eq!(without_prefix(key), key);
        }
    }

    #[test]
    fn the_adapters_name_is_taken_out() {
        for (key, plain, adapter) in [
            (
                "a.fc.lora_A.default.weight",
                "a.fc.lora_A.weight",
                "default",
            ),
            ("fc.lora_B.x.bias", "fc.lora_B.bias", "x"),
            ("wte.lora_embedding_A.x", "wte.lora_embedding_A", "x"),
            ("fc.lora_A.weight.weight", "fc.lora_A.weight", "weight"),
            (
                "fc.lora_magnitude_vector.x.weight",
                "fc.lora_magnitude_vector",
                "x",
            ),
            (
                "fc.lora_magnitude_vector.x",
                "fc.lora_magnitude_vector",
                "x",
            ),
            (
                "e.token_adapter.trainable_tokens_delta.x",
                "e.token_adapter.trainable_tokens_delta",
                "x",
            ),
            ("head.modules_to_save.x.weight", "head.weight", "x"),
        ] {
            assert_eq!(without_adapter(key), (plain.into(), Some(adapter)));
        }
        for key in [
            "fc.lora_A.weight",
            "fc.weight",
            "head.modules_to_save.bias",
            "modules_to_save.x.weight",
        ] {
            assert_eq!(without_adapter(key), (key.into(), None));
        }
        let magnitude = without_adapter("fc.lora_magnitude_vector.weight");
        assert_eq!(magnitude, ("fc.lora_magnitude_vector".into(), None));
    }

    #[test]
    fn wrappers_are_taken_off() {
        assert_eq!(without_wrappers("a.base_layer.b.base_layer"), "a.b");
        assert_eq!(wrappers_behind("a.base_layer.base_layer"), ("a", 2));
        assert_eq!(
            path_of_base_weight("a.wte.base_layer.weight"),
            Some("a.wte")
        );
        assert_eq!(
            path_of_base_weight("a.wte.token_adapter.base_layer.weight"),
            Some("a.wte")
        );
        assert_eq!(path_of_base_weight("base_layer.weight"), Some(""));
        assert_eq!(path_of_base_weight("a.wte.weight"), None);
        assert_eq!(path_of_base_weight("a.xbase_layer.weight"), None);
        assert_eq!(owner_of_projection("mha.base_layer.out_proj"), Some("mha"));
    }
}
