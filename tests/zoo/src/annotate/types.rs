//! The types of a model, and which of them derive.

use super::{mentions, names, scoped, self_name};
use quote::ToTokens;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use syn::visit::{self, Visit};
use syn::{Field, ImplItem, ItemEnum, ItemImpl, ItemMod, ItemStruct};

/// The layers of candle-nn, and its caches, which need a gradient as well.
const LAYERS: &[&str] = &[
    "BatchNorm",
    "ConcatKvCache",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Embedding",
    "GRU",
    "GroupNorm",
    "KvCache",
    "LSTM",
    "LayerNorm",
    "Linear",
    "PReLU",
    "RmsNorm",
    "RotatingKvCache",
    "Sequential",
];

/// A type: file, and name with the modules of the file before it.
pub type Key = (PathBuf, String);

/// The types of a model: the names in their fields, and which are loaded or have a forward pass.
#[derive(Default)]
pub struct Types {
    pub path: PathBuf,
    module: Vec<String>,
    fields: BTreeMap<Key, Vec<String>>,
    loaded: BTreeSet<Key>,
    computing: BTreeSet<Key>,
    /// Other names of types, by file and name.
    aliases: BTreeMap<Key, String>,
}

impl Types {
    fn key(&self, name: &str) -> Key {
        (self.path.clone(), scoped(&self.module, name))
    }

    fn add<'a>(&mut self, name: &syn::Ident, fields: impl Iterator<Item = &'a Field>) {
        let names = fields.flat_map(|field| names(&field.ty));
        let key = self.key(&name.to_string());
        self.fields.entry(key).or_default().extend(names);
    }

    /// The types that hold layers, in themselves or in each other, or that compute.
    pub fn layered(&self) -> BTreeSet<Key> {
        let has_tensor = |key: &&Key| {
            self.fields
                .get(*key)
                .is_some_and(|fields| fields.iter().any(|name| name == "Tensor"))
        };
        let mut models: BTreeSet<Key> = self.loaded.iter().filter(has_tensor).cloned().collect();
        models.extend(
            self.computing
                .iter()
                .filter(|key| self.fields.contains_key(*key))
                .cloned(),
        );
        loop {
            let more = self.fields.iter().filter(|(key, fields)| {
                !models.contains(*key) && fields.iter().any(|name| self.holds(key, name, &models))
            });
            let more: Vec<_> = more.map(|(key, _)| key.clone()).collect();
            if more.is_empty() {
                return models;
            }
            models.extend(more);
        }
    }

    /// True if a name in a type's field means a layer, or one of the models. The type's own file
    /// decides, where it has a type of that name.
    fn holds(&self, (path, of): &Key, name: &str, models: &BTreeSet<Key>) -> bool {
        let name = self
            .aliases
            .get(&(path.clone(), name.to_string()))
            .map_or(name, String::as_str);
        let module = of.rsplit_once("::").map_or("", |(module, _)| module);
        let near = [format!("{module}::{name}"), name.to_string()];
        for name in near {
            let key = (path.clone(), name);
            if self.fields.contains_key(&key) {
                return models.contains(&key);
            }
        }
        let known = self.fields.keys().any(|(_, other)| other == name);
        match known {
            true => models.iter().any(|(_, other)| other == name),
            false => LAYERS.contains(&name),
        }
    }
}

impl<'ast> Visit<'ast> for Types {
    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        self.add(&item.ident, item.fields.iter());
    }

    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        // Without fields there is nothing to convert.
        if item
            .variants
            .iter()
            .any(|variant| !variant.fields.is_empty())
        {
            self.add(
                &item.ident,
                item.variants.iter().flat_map(|variant| &variant.fields),
            );
        }
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        let Some(key) = self_name(item).map(|name| self.key(&name)) else {
            return;
        };
        for part in &item.items {
            let ImplItem::Fn(method) = part else {
                continue;
            };
            let mut inputs = method.sig.inputs.iter();
            if inputs.any(|input| mentions(&input.to_token_stream(), "VarBuilder")) {
                self.loaded.insert(key.clone());
            }
            if method.sig.ident == "forward" {
                self.computing.insert(key.clone());
            }
        }
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        if let Some(name) = names(&item.ty).pop() {
            self.aliases
                .insert((self.path.clone(), item.ident.to_string()), name);
        }
    }

    fn visit_use_rename(&mut self, item: &'ast syn::UseRename) {
        self.aliases.insert(
            (self.path.clone(), item.rename.to_string()),
            item.ident.to_string(),
        );
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.ident != "tests" {
            self.module.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.module.pop();
        }
    }
}
