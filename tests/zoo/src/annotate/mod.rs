//! The rules by which a newcomer would annotate a model.
//!
//! 1. A struct or enum that holds layers, or tensors that its constructor takes from a `VarBuilder`, or
//!    that has a forward pass, derives `LoraModel`.
//! 2. A field of a linear layer, a convolution, an embedding or a type of the library's carries
//!    `#[lora(rank)]`.
//! 3. An impl block of such a type carries `#[lora::forward]`, except where a trait of the standard
//!    library is implemented.
//! 4. A field whose type the compiler says has no LoRA counterpart carries `#[lora(skip)]`.
//! 5. A function that computes, and an impl block of any other type, that calls one of candle's fused
//!    functions carries `#[lora::forward]` or `#[lora::forward(plain)]`.
//!
//! The rules insert attributes and change nothing else.

mod search;
mod types;

pub use search::field_at;

use crate::attributes::Attributes;
use anyhow::{Context, Result};
use proc_macro2::{LineColumn, Span, TokenTree};
use quote::ToTokens;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Field, ImplItem, ItemEnum, ItemFn, ItemImpl, ItemMod, ItemStruct, Type};
use types::{Key, Types};

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
                .any(|name| RANKED.contains(&name.as_str()) || name == "lora")
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

/// A name with the modules before it.
fn scoped(module: &[String], name: &str) -> String {
    module
        .iter()
        .map(String::as_str)
        .chain([name])
        .collect::<Vec<_>>()
        .join("::")
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
