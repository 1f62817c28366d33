//! The adapter's tensors, sorted by the module that they belong to.

use crate::adapter::Part;
use crate::peft::keys::{self, is_embedding, without_wrappers};
use crate::peft::tensors::Tensors;
use indexmap::IndexMap;

/// A module's parts, each with its key in the file.
#[derive(Default)]
pub(super) struct Module {
    parts: Vec<(Part, String)>,
    /// The keys have the names of an embedding's parts.
    pub of_lookup: bool,
}

impl Module {
    pub fn get(&self, part: Part) -> Option<&str> {
        let mut parts = self.parts.iter();
        parts.find(|(p, _)| *p == part).map(|(_, key)| key.as_str())
    }

    pub fn has(&self, part: Part) -> bool {
        self.get(part).is_some()
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(_, key)| key.as_str())
    }
}

/// The keys of a file.
pub(super) struct Keys {
    /// By path without the prefix, `base_layer` and all.
    pub modules: IndexMap<String, Module>,
    /// A and B of the adapted embeddings. Only the first few: no model has more, and each head is
    /// compared with all of them.
    pub embeddings: Vec<(String, String)>,
    /// Embeddings that come in full, as in [`plain`](Self::plain). Only the first few.
    pub full_embeddings: Vec<(String, String)>,
    /// Tensors under a name of the base model: that name, and the key in the file.
    pub plain: IndexMap<String, String>,
}

impl Keys {
    pub fn of(file: &Tensors) -> Self {
        let mut sorted = Self {
            modules: IndexMap::new(),
            embeddings: Vec::new(),
            full_embeddings: Vec::new(),
            plain: IndexMap::new(),
        };
        for (plain, key) in file.keys() {
            let Some(parsed) = keys::parse(plain) else {
                sorted.plain.insert(plain.clone(), key.clone());
                continue;
            };
            let module = sorted.modules.entry(parsed.path.into()).or_default();
            module.of_lookup |= parsed.of_lookup && matches!(parsed.part, Part::A | Part::B);
            module.parts.push((parsed.part, key.clone()));
        }
        let embeddings = sorted.modules.values().filter(|module| module.of_lookup);
        let pairs = embeddings.filter_map(|module| {
            let (a, b) = (module.get(Part::A)?, module.get(Part::B)?);
            Some((a.to_string(), b.to_string()))
        });
        sorted.embeddings = pairs.take(16).collect();
        let full = sorted
            .plain
            .iter()
            .filter(|(name, _)| is_embedding(&without_wrappers(name)));
        let full = full.map(|(name, key)| (name.clone(), key.clone()));
        sorted.full_embeddings = full.take(16).collect();
        sorted
    }
}
