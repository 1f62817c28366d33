//! The adapter's tensors, sorted by the module that they belong to.

use super::plain::is_embedding;
use crate::error::shorten;
use crate::file::TensorFile;
use crate::peft::PREFIX;
use crate::{Error, Result};
use indexmap::IndexMap;

/// What a key ends in, and which part that is.
const PARTS: [(&str, Part); 7] = [
    ("lora_A.weight", Part::A),
    ("lora_B.weight", Part::B),
    ("lora_B.bias", Part::BiasOfB),
    ("lora_embedding_A", Part::EmbeddingA),
    ("lora_embedding_B", Part::EmbeddingB),
    ("lora_magnitude_vector", Part::Magnitude),
    ("token_adapter.trainable_tokens_delta", Part::Tokens),
];

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    A,
    B,
    BiasOfB,
    EmbeddingA,
    EmbeddingB,
    Magnitude,
    Tokens,
}

/// A module's parts, each with its key in the file.
#[derive(Default)]
pub(super) struct Module(Vec<(Part, String)>);

impl Module {
    pub fn get(&self, part: Part) -> Option<&str> {
        let mut parts = self.0.iter();
        parts.find(|(p, _)| *p == part).map(|(_, key)| key.as_str())
    }

    pub fn has(&self, part: Part) -> bool {
        self.get(part).is_some()
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, key)| key.as_str())
    }
}

/// The keys of a file.
pub(super) struct Keys {
    /// By path without the prefix, `base_layer` and all.
    pub modules: IndexMap<String, Module>,
    /// A and B of the adapted embeddings; of the first few, as no model has more.
    pub embeddings: Vec<(String, String)>,
    /// Embeddings that come in full, as in [`plain`](Self::plain); of the first few.
    pub full_embeddings: Vec<(String, String)>,
    /// Tensors under a name of the base model's: that name, and the key in the file.
    pub plain: IndexMap<String, String>,
}

impl Keys {
    pub fn of(file: &TensorFile) -> Result<Self> {
        let mut keys = Self {
            modules: IndexMap::new(),
            embeddings: Vec::new(),
            full_embeddings: Vec::new(),
            plain: IndexMap::new(),
        };
        let mut problems = Vec::new();
        let mut sorted: Vec<&String> = file.tensors().keys().collect();
        sorted.sort();
        for key in sorted {
            let bare = key.strip_prefix(PREFIX).unwrap_or(key);
            let part = PARTS.iter().find_map(|(end, part)| {
                let path = bare.strip_suffix(end)?;
                let path = path.strip_suffix('.').or(path.is_empty().then_some(path))?;
                Some((path, *part))
            });
            let twice = match part {
                Some((path, part)) => {
                    let module = keys.modules.entry(path.into()).or_default();
                    let twice = module.has(part);
                    module.0.push((part, key.clone()));
                    twice
                }
                None => keys.plain.insert(bare.into(), key.clone()).is_some(),
            };
            if twice {
                let bare = shorten(bare);
                problems.push(format!("holds `{bare}` with and without its prefix"));
            }
        }
        let pairs = keys.modules.values().filter_map(|module| {
            let (a, b) = (module.get(Part::EmbeddingA)?, module.get(Part::EmbeddingB)?);
            Some((a.to_string(), b.to_string()))
        });
        keys.embeddings = pairs.take(16).collect();
        let full = keys
            .plain
            .iter()
            .filter(|(name, _)| is_embedding(&without_wrappers(name)));
        let full = full.map(|(name, key)| (name.clone(), key.clone()));
        keys.full_embeddings = full.take(16).collect();
        if problems.is_empty() {
            Ok(keys)
        } else {
            Err(Error::File {
                path: file.path().into(),
                problems,
            })
        }
    }
}

/// A path without PEFT's wrappers.
pub(super) fn without_wrappers(path: &str) -> String {
    let parts = path.split('.').filter(|part| *part != "base_layer");
    parts.collect::<Vec<_>>().join(".")
}

/// The module and the number of wrappers that directly follow it: `experts`, 2 for
/// `experts.base_layer.base_layer`.
pub(super) fn wrappers_behind(path: &str) -> (&str, usize) {
    let (mut path, mut count) = (path, 0);
    while let Some(inner) = path.strip_suffix("base_layer") {
        path = inner.strip_suffix('.').unwrap_or(inner);
        count += 1;
    }
    (path, count)
}
