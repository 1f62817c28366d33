//! Parses `#[lora(..)]` attributes, each by itself. What goes together is checked in
//! [`valid`](crate::valid).

mod entry;
mod linear;
mod part;
mod spelling;
pub mod value;

pub use entry::{Entry, parse_entries, set};
pub use linear::Linear;
pub use part::Part;

use crate::ctxt::Ctxt;
use crate::krate;
use entry::{entries, lists, split};
use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::{Attribute, Ident, Path, WherePredicate};

/// A key of an attribute, for messages, with its value.
#[derive(Clone)]
pub struct Given<T> {
    pub key: Ident,
    pub value: T,
}

/// The key, where one is given.
pub fn key<T>(given: &Option<Given<T>>) -> Option<&Ident> {
    given.as_ref().map(|given| &given.key)
}

/// The attributes of a struct or enum.
#[derive(Default)]
pub struct Container {
    pub krate: Option<Given<Path>>,
    pub name: Option<Given<Ident>>,
    pub derives: Option<Given<Vec<Path>>>,
    pub bound: Option<Given<Vec<WherePredicate>>>,
    pub plain: Option<Given<()>>,
    pub linear: Option<Given<Linear>>,
}

/// The attributes of a field.
#[derive(Clone, Default)]
pub struct Field {
    pub rank: Option<Given<Option<usize>>>,
    pub alpha: Option<Given<f64>>,
    pub dropout: Option<Given<f64>>,
    pub trainable: Option<Given<()>>,
    pub skip: Option<Given<()>>,
    pub config: Option<Given<Option<Ident>>>,
    pub name: Option<Given<String>>,
    pub flatten: Option<Given<()>>,
    pub routed: Option<Given<()>>,
    /// Those of the parts of a tuple.
    pub parts: Vec<Part>,
}

const CONTAINER: &[&str] = &["crate", "name", "derive", "bound", "plain", "linear"];
const FIELD: &[&str] = &[
    "rank",
    "alpha",
    "dropout",
    "trainable",
    "skip",
    "config",
    "name",
    "flatten",
    "routed",
];

impl Container {
    pub fn parse(cx: &Ctxt, attrs: &[Attribute]) -> Self {
        let mut all = Self::default();
        for entry in entries(cx, attrs) {
            match entry.key.to_string().as_str() {
                "crate" => set(cx, &mut all.krate, &entry, |e| krate::parse(&e.value()?)),
                "name" => set(cx, &mut all.name, &entry, |e| value::ty(&e.value()?)),
                "derive" => set(cx, &mut all.derives, &entry, Entry::list),
                "bound" => set(cx, &mut all.bound, &entry, |e| value::bound(&e.value()?)),
                "plain" => set(cx, &mut all.plain, &entry, Entry::flag),
                "linear" => set(cx, &mut all.linear, &entry, Linear::parse),
                _ => entry.unknown(cx, CONTAINER, FIELD, "a field"),
            }
        }
        all
    }
}

impl Field {
    pub fn parse(cx: &Ctxt, attrs: &[Attribute]) -> Self {
        let mut all = Self::default();
        for list in lists(cx, attrs) {
            all.read(cx, list);
        }
        all
    }

    fn read(&mut self, cx: &Ctxt, list: TokenStream) {
        for tokens in split(list) {
            if Part::is_one(&tokens) {
                self.parts.extend(cx.ok(Part::parse(cx, tokens)));
            } else if let Some(entry) = Entry::parse(cx, tokens) {
                self.set(cx, &entry);
            }
        }
    }

    fn set(&mut self, cx: &Ctxt, entry: &Entry) {
        match entry.key.to_string().as_str() {
            "rank" => set(cx, &mut self.rank, entry, |e| {
                e.optional()?.map(|rank| value::rank(&rank)).transpose()
            }),
            "alpha" => set(cx, &mut self.alpha, entry, |e| value::alpha(&e.value()?)),
            "dropout" => set(cx, &mut self.dropout, entry, |e| {
                value::dropout(&e.value()?)
            }),
            "trainable" => set(cx, &mut self.trainable, entry, Entry::flag),
            "skip" => set(cx, &mut self.skip, entry, Entry::flag),
            "config" => set(cx, &mut self.config, entry, Entry::optional),
            "name" => set(cx, &mut self.name, entry, |e| value::segment(&e.value()?)),
            "flatten" => set(cx, &mut self.flatten, entry, Entry::flag),
            "routed" => set(cx, &mut self.routed, entry, Entry::flag),
            _ => entry.unknown(cx, FIELD, CONTAINER, "the struct or enum"),
        }
    }
}

impl Field {
    /// A key to point at: one of those that exclude each other, if there is one.
    pub fn key(&self) -> Option<&Ident> {
        let mut keys = self.exclusive().into_iter().flatten();
        let path = key(&self.name).or(key(&self.flatten));
        keys.next().or(path).or(key(&self.routed))
    }

    /// The keys of which a field has one at most.
    pub fn exclusive(&self) -> [Option<&Ident>; 4] {
        [
            key(&self.rank),
            key(&self.trainable),
            key(&self.skip),
            key(&self.config),
        ]
    }
}

/// A variant has no attributes of its own.
pub fn refuse_on_variant(cx: &Ctxt, attrs: &[Attribute]) {
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("lora")) {
        cx.error(
            attr,
            "a variant takes no `#[lora(..)]`: put it on the variant's fields",
        );
    }
}

/// The attributes that the LoRA type or field takes over.
pub fn kept(attrs: &[Attribute], names: &[&str]) -> Vec<Attribute> {
    let kept = attrs.iter().filter(|attr| {
        let path = attr.path().to_token_stream().to_string();
        names.contains(&path.as_str())
    });
    kept.cloned().collect()
}
