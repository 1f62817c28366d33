//! The rules by which a newcomer would annotate a model.
//!
//! 1. A struct or enum that holds layers, or tensors that its constructor takes from a `VarBuilder`,
//!    derives `LoraModel`.
//! 2. A field of a linear layer, a convolution or an embedding carries `#[lora(rank)]`.
//! 3. An impl block of such a type carries `#[lora::forward]`, except where a trait of the standard
//!    library is implemented.
//! 4. A field whose type the compiler says has no LoRA counterpart carries `#[lora(skip)]`.
//!
//! The rules insert attributes and change nothing else.

use crate::attributes::Attributes;
use anyhow::{Context, Result};
use proc_macro2::{LineColumn, Span, TokenTree};
use quote::ToTokens;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Field, ImplItem, Item, ItemEnum, ItemImpl, ItemMod, ItemStruct, Type};

/// The layers of candle-nn.
const LAYERS: &[&str] = &[
    "BatchNorm",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Embedding",
    "GRU",
    "GroupNorm",
    "LSTM",
    "LayerNorm",
    "Linear",
    "PReLU",
    "RmsNorm",
    "Sequential",
];

/// The layers that a newcomer gives a rank.
const RANKED: &[&str] = &["Conv1d", "Conv2d", "Embedding", "Linear"];

/// Traits whose impls have no layers to speak of.
const STANDARD: &[&str] = &[
    "Clone",
    "Debug",
    "Default",
    "Deref",
    "DerefMut",
    "Display",
    "Drop",
    "From",
    "FromStr",
    "Hash",
    "Iterator",
    "PartialEq",
    "TryFrom",
];

/// A field: file, type, variant, index.
pub type Place = (PathBuf, String, String, usize);

/// The files of a model, with attributes.
pub struct Model<'a> {
    pub files: &'a BTreeMap<PathBuf, String>,
    /// Fields that are skipped.
    pub skipped: &'a BTreeSet<Place>,
    /// Attributes beyond the rules.
    pub more: &'a Attributes,
}

impl Model<'_> {
    /// The annotated files.
    pub fn annotate(&self) -> Result<BTreeMap<PathBuf, String>> {
        let parsed = self.files.iter().map(|(path, text)| {
            let file = syn::parse_file(text);
            Ok((
                path,
                file.with_context(|| format!("cannot parse {}", path.display()))?,
            ))
        });
        let parsed: Vec<_> = parsed.collect::<Result<_>>()?;
        let models = layered(parsed.iter().map(|(_, file)| file));
        let files = parsed.iter().map(|(path, file)| {
            let mut writer = Writer {
                model: self,
                path,
                models: &models,
                inserted: Vec::new(),
            };
            writer.visit_file(file);
            let imports = !writer.inserted.is_empty();
            let mut text = insert(&self.files[*path], writer.inserted);
            if imports {
                text.push_str("\n#[allow(unused_imports)]\nuse lora::LoraModel;\n");
            }
            ((*path).clone(), text)
        });
        Ok(files.collect())
    }
}

/// The field that stands at a place in an annotated file, if its type has this name in it.
pub fn field_at(
    path: &Path,
    text: &str,
    (line, column): (usize, usize),
    ty: &str,
) -> Option<Place> {
    let file = syn::parse_file(text).ok()?;
    let at = LineColumn { line, column };
    let mut search = Search {
        path,
        at,
        ty,
        found: None,
    };
    search.visit_file(&file);
    search.found
}

/// The names of the types that hold layers, in themselves or in each other.
fn layered<'a>(files: impl Iterator<Item = &'a syn::File>) -> BTreeSet<String> {
    let mut types = Types::default();
    for file in files {
        types.visit_file(file);
    }
    let holds = |fields: &Vec<String>, models: &BTreeSet<String>| {
        fields
            .iter()
            .any(|name| LAYERS.contains(&name.as_str()) || models.contains(name))
    };
    let loaded = types.loaded.iter().filter(|name| {
        types
            .fields
            .get(*name)
            .is_some_and(|fields| fields.iter().any(|field| field == "Tensor"))
    });
    let mut models: BTreeSet<String> = loaded.cloned().collect();
    loop {
        let more = types
            .fields
            .iter()
            .filter(|(name, fields)| !models.contains(*name) && holds(fields, &models));
        let more: Vec<_> = more.map(|(name, _)| name.clone()).collect();
        if more.is_empty() {
            return models;
        }
        models.extend(more);
    }
}

/// The types of a model: the names in their fields, and which are loaded from a `VarBuilder`.
#[derive(Default)]
struct Types {
    fields: BTreeMap<String, Vec<String>>,
    loaded: BTreeSet<String>,
}

impl Types {
    fn add<'a>(&mut self, name: &syn::Ident, fields: impl Iterator<Item = &'a Field>) {
        let names = fields.flat_map(|field| names(&field.ty));
        self.fields
            .entry(name.to_string())
            .or_default()
            .extend(names);
    }
}

impl<'ast> Visit<'ast> for Types {
    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        self.add(&item.ident, item.fields.iter());
    }

    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        self.add(
            &item.ident,
            item.variants.iter().flat_map(|variant| &variant.fields),
        );
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        let loads = item.items.iter().any(|item| match item {
            ImplItem::Fn(method) => method
                .sig
                .inputs
                .iter()
                .any(|input| mentions(&input.to_token_stream(), "VarBuilder")),
            _ => false,
        });
        if loads && let Some(name) = self_name(item) {
            self.loaded.insert(name);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }
}

/// Collects what is to be inserted into a file.
struct Writer<'a> {
    model: &'a Model<'a>,
    path: &'a Path,
    models: &'a BTreeSet<String>,
    inserted: Vec<(LineColumn, String)>,
}

impl Writer<'_> {
    fn insert(&mut self, at: Span, text: impl Into<String>) {
        self.inserted.push((at.start(), text.into()));
    }

    fn derive(&mut self, name: &syn::Ident, start: Span) {
        let attribute = match self.model.more.of(self.path, &name.to_string(), "") {
            Some(given) => format!("#[derive(LoraModel)] {given} "),
            None => "#[derive(LoraModel)] ".to_string(),
        };
        self.insert(start, attribute);
    }

    fn fields<'a>(
        &mut self,
        ty: &syn::Ident,
        variant: &str,
        fields: impl Iterator<Item = &'a Field>,
    ) {
        for (index, field) in fields.enumerate() {
            let name = match (&field.ident, variant.is_empty()) {
                (Some(name), true) => name.to_string(),
                (Some(name), false) => format!("{variant}.{name}"),
                (None, true) => index.to_string(),
                (None, false) => format!("{variant}.{index}"),
            };
            let place = (
                self.path.to_path_buf(),
                ty.to_string(),
                variant.to_string(),
                index,
            );
            let attribute =
                if let Some(given) = self.model.more.of(self.path, &ty.to_string(), &name) {
                    given.to_string()
                } else if self.model.skipped.contains(&place) {
                    "#[lora(skip)]".to_string()
                } else if names(&field.ty)
                    .iter()
                    .any(|name| RANKED.contains(&name.as_str()))
                {
                    "#[lora(rank)]".to_string()
                } else {
                    continue;
                };
            self.insert(start(field), format!("{attribute} "));
        }
    }
}

impl<'ast> Visit<'ast> for Writer<'_> {
    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        if self.models.contains(&item.ident.to_string()) {
            let start = first(&item.vis, item.struct_token.span);
            self.derive(&item.ident, start);
            self.fields(&item.ident, "", item.fields.iter());
        }
    }

    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        if self.models.contains(&item.ident.to_string()) {
            let start = first(&item.vis, item.enum_token.span);
            self.derive(&item.ident, start);
            for variant in &item.variants {
                self.fields(
                    &item.ident,
                    &variant.ident.to_string(),
                    variant.fields.iter(),
                );
            }
        }
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        let Some(name) = self_name(item).filter(|name| self.models.contains(name)) else {
            return;
        };
        let of = item
            .trait_
            .as_ref()
            .and_then(|(path, _)| path.segments.last());
        let of = of
            .map(|segment| segment.ident.to_string())
            .unwrap_or_default();
        if STANDARD.contains(&of.as_str()) {
            return;
        }
        let given = self.model.more.of(self.path, &format!("impl {of}"), &name);
        let text = given.unwrap_or("#[lora::forward]");
        self.insert(item.impl_token.span, format!("{text} "));
        for part in &item.items {
            if let ImplItem::Fn(method) = part {
                let key = format!("fn {}", method.sig.ident);
                if let Some(given) = self.model.more.of(self.path, &name, &key) {
                    let start = first(&method.vis, method.sig.span());
                    self.insert(start, format!("{given} "));
                }
            }
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item(&mut self, item: &'ast Item) {
        visit::visit_item(self, item);
    }
}

/// Looks for the field around a place.
struct Search<'a> {
    path: &'a Path,
    at: LineColumn,
    ty: &'a str,
    found: Option<Place>,
}

impl Search<'_> {
    fn fields<'a>(
        &mut self,
        ty: &syn::Ident,
        variant: &str,
        fields: impl Iterator<Item = &'a Field>,
    ) {
        for (index, field) in fields.enumerate() {
            let span = field.span();
            let is_here = span.start() <= self.at && self.at < span.end();
            if is_here && (names(&field.ty).iter().any(|name| name == self.ty)) {
                let path = self.path.to_path_buf();
                self.found = Some((path, ty.to_string(), variant.to_string(), index));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Search<'_> {
    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        self.fields(&item.ident, "", item.fields.iter());
    }

    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        for variant in &item.variants {
            self.fields(
                &item.ident,
                &variant.ident.to_string(),
                variant.fields.iter(),
            );
        }
    }
}

/// Where the field begins, behind its attributes.
fn start(field: &Field) -> Span {
    let name = field
        .ident
        .as_ref()
        .map_or_else(|| field.ty.span(), |name| name.span());
    first(&field.vis, name)
}

fn first(vis: &syn::Visibility, next: Span) -> Span {
    match vis {
        syn::Visibility::Inherited => next,
        vis => vis.span(),
    }
}

/// The name of the type that an impl block is for.
fn self_name(item: &ItemImpl) -> Option<String> {
    match &*item.self_ty {
        Type::Path(path) => Some(path.path.segments.last()?.ident.to_string()),
        _ => None,
    }
}

/// All identifiers in a type.
fn names(ty: &Type) -> Vec<String> {
    fn collect(tokens: proc_macro2::TokenStream, all: &mut Vec<String>) {
        for token in tokens {
            match token {
                TokenTree::Ident(name) => all.push(name.to_string()),
                TokenTree::Group(group) => collect(group.stream(), all),
                _ => {}
            }
        }
    }
    let mut all = Vec::new();
    collect(ty.to_token_stream(), &mut all);
    all
}

fn mentions(tokens: &proc_macro2::TokenStream, name: &str) -> bool {
    tokens.clone().into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == name,
        TokenTree::Group(group) => mentions(&group.stream(), name),
        _ => false,
    })
}

/// The text with insertions.
fn insert(text: &str, mut inserted: Vec<(LineColumn, String)>) -> String {
    inserted.sort_by_key(|(at, _)| *at);
    let mut lines: Vec<String> = text.lines().map(String::from).collect();
    for (at, new) in inserted.into_iter().rev() {
        let line = &mut lines[at.line - 1];
        // Columns count characters.
        let byte = line
            .char_indices()
            .nth(at.column)
            .map_or(line.len(), |(byte, _)| byte);
        line.insert_str(byte, &new);
    }
    lines.join("\n") + "\n"
}
