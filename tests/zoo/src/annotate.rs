//! The rules by which a newcomer would annotate a model.
//!
//! 1. A struct or enum that holds layers, or tensors that its constructor takes from a `VarBuilder`, or
//!    that has a forward pass, derives `LoraModel`.
//! 2. A field of a linear layer, a convolution or an embedding carries `#[lora(rank)]`.
//! 3. An impl block of such a type carries `#[lora::forward]`, except where a trait of the standard
//!    library is implemented.
//! 4. A field whose type the compiler says has no LoRA counterpart carries `#[lora(skip)]`.
//! 5. A function that computes, and an impl block of any other type, that calls one of candle's fused
//!    functions carries `#[lora::forward]` or `#[lora::forward(plain)]`.
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
use syn::{Field, ImplItem, ItemEnum, ItemFn, ItemImpl, ItemMod, ItemStruct, Type};

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

/// The layers that a newcomer gives a rank.
const RANKED: &[&str] = &["Conv1d", "Conv2d", "Embedding", "Linear"];

/// Candle's functions that record no backward pass.
const FUSED: &[&str] = &[
    "layer_norm",
    "rms_norm",
    "rope",
    "rope_i",
    "rope_thd",
    "run_flash_attn_cpu",
    "sdpa",
    "softmax_last_dim",
];

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

/// A field: file, type with its module in the file, variant, index.
pub type Place = (PathBuf, String, String, usize);

/// A type: file, and name with the modules of the file before it.
type Key = (PathBuf, String);

/// The files of a model, with attributes.
pub struct Model<'a> {
    pub files: &'a BTreeMap<PathBuf, String>,
    /// Fields that are skipped.
    pub skipped: &'a BTreeSet<Place>,
    /// Attributes beyond the rules.
    pub more: &'a Attributes,
}

impl Model<'_> {
    /// The annotated files, and how many types derive.
    pub fn annotate(&self) -> Result<(BTreeMap<PathBuf, String>, usize)> {
        let parsed = self.files.iter().map(|(path, text)| {
            let file = syn::parse_file(text);
            Ok((
                path,
                file.with_context(|| format!("cannot parse {}", path.display()))?,
            ))
        });
        let parsed: Vec<_> = parsed.collect::<Result<_>>()?;
        let mut types = Types::default();
        for (path, file) in &parsed {
            types.path = path.to_path_buf();
            types.visit_file(file);
        }
        let models = types.layered();
        let files = parsed.iter().map(|(path, file)| {
            let mut writer = Writer {
                model: self,
                path,
                module: Vec::new(),
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
        Ok((files.collect(), models.len()))
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
        module: Vec::new(),
        at,
        ty,
        aliases: Vec::new(),
        found: None,
    };
    search.visit_file(&file);
    search.found
}

/// The types of a model: the names in their fields, and which are loaded or have a forward pass.
#[derive(Default)]
struct Types {
    path: PathBuf,
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
    fn layered(&self) -> BTreeSet<Key> {
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

/// A name with the modules before it.
fn scoped(module: &[String], name: &str) -> String {
    module
        .iter()
        .map(String::as_str)
        .chain([name])
        .collect::<Vec<_>>()
        .join("::")
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

/// Collects what is to be inserted into a file.
struct Writer<'a> {
    model: &'a Model<'a>,
    path: &'a Path,
    module: Vec<String>,
    models: &'a BTreeSet<Key>,
    inserted: Vec<(LineColumn, String)>,
}

impl Writer<'_> {
    fn insert(&mut self, at: Span, text: impl Into<String>) {
        self.inserted.push((at.start(), text.into()));
    }

    fn is_model(&self, name: &str) -> bool {
        self.models
            .contains(&(self.path.to_path_buf(), scoped(&self.module, name)))
    }

    /// The derive of a model, and what else an owner writes on a type.
    fn item(&mut self, name: &syn::Ident, start: Span) -> bool {
        let is_model = self.is_model(&name.to_string());
        let name = scoped(&self.module, &name.to_string());
        let given = self.model.more.of(self.path, &name, "");
        let derive = is_model.then_some("#[derive(LoraModel)]");
        for attribute in derive.into_iter().chain(given) {
            self.insert(start, format!("{attribute} "));
        }
        is_model
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
            let ty = scoped(&self.module, &ty.to_string());
            let path = self.path.to_path_buf();
            let place = (path, ty.clone(), variant.to_string(), index);
            let attribute = if let Some(given) = self.model.more.of(self.path, &ty, &name) {
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
        if self.item(&item.ident, first(&item.vis, item.struct_token.span)) {
            self.fields(&item.ident, "", item.fields.iter());
        }
    }

    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        if self.item(&item.ident, first(&item.vis, item.enum_token.span)) {
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
        let Some(name) = self_name(item).filter(|name| self.is_model(name)) else {
            if calls_fused(&item.to_token_stream()) {
                self.insert(item.impl_token.span, "#[lora::forward(plain)] ");
            }
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
        let given = self
            .model
            .more
            .of(self.path, format!("impl {of}").trim_end(), &name);
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

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        let loads = mentions(&item.sig.inputs.to_token_stream(), "VarBuilder");
        if !loads && calls_fused(&item.block.to_token_stream()) {
            let start = first(&item.vis, item.sig.span());
            self.insert(start, "#[lora::forward] ");
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.ident == "tests" {
            return;
        }
        let before = self.inserted.len();
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
        if let (true, Some((_, items))) = (self.inserted.len() > before, &item.content)
            && let Some(last) = items.last()
        {
            let end = last.span().end();
            self.inserted
                .push((end, " #[allow(unused_imports)] use lora::LoraModel;".into()));
        }
    }
}

/// Looks for the field around a place.
struct Search<'a> {
    path: &'a Path,
    module: Vec<String>,
    at: LineColumn,
    ty: &'a str,
    aliases: Vec<(String, String)>,
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
            let is_named = |name: &String| {
                let alias = self.aliases.iter().find(|(alias, _)| alias == name);
                name == self.ty || alias.is_some_and(|(_, name)| name == self.ty)
            };
            if is_here && names(&field.ty).iter().any(is_named) {
                let ty = scoped(&self.module, &ty.to_string());
                self.found = Some((self.path.to_path_buf(), ty, variant.to_string(), index));
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

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        if let Some(name) = names(&item.ty).pop() {
            self.aliases.push((item.ident.to_string(), name));
        }
    }

    fn visit_use_rename(&mut self, item: &'ast syn::UseRename) {
        self.aliases
            .push((item.rename.to_string(), item.ident.to_string()));
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
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

fn calls_fused(tokens: &proc_macro2::TokenStream) -> bool {
    FUSED.iter().any(|name| mentions(tokens, name))
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
