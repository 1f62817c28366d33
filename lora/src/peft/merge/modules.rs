//! The adapter's tensors, sorted by the module that they belong to.

use crate::adapter::Part;
use crate::error::shorten;
use crate::file::TensorFile;
use crate::peft::keys::{self, is_embedding, without_wrappers};
use crate::{Error, Result};
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
    pub fn of(file: &TensorFile) -> Result<Self> {
        let mut sorted = Self {
            modules: IndexMap::new(),
            embeddings: Vec::new(),
            full_embeddings: Vec::new(),
            plain: IndexMap::new(),
        };
        let mut problems = Vec::new();
        let mut names: Vec<&String> = file.tensors().keys().collect();
        names.sort();
        for key in names {
            let bare = keys::without_prefix(key);
            let twice = match keys::parse(bare) {
                Some((path, part, of_lookup)) => {
                    let module = sorted.modules.entry(path.into()).or_default();
                    let twice = module.has(part);
                    module.of_lookup |= of_lookup && matches!(part, Part::A | Part::B);
                    module.parts.push((part, key.clone()));
                    twice
                }
                None => sorted.plain.insert(bare.into(), key.clone()).is_some(),
            };
            if twice {
                let bare = shorten(bare);
                problems.push(format!("holds `{bare}` with and without its prefix"));
            }
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
        if problems.is_empty() {
            Ok(sorted)
        } else {
            Err(Error::File {
                path: file.path().into(),
                problems,
            })
        }
    }
}
