//! Turns code for a base type into code for its LoRA type.

use super::near::Near;
use crate::name;
use proc_macro2::{Group, Ident, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::ext::IdentExt;
use syn::visit_mut::{self, VisitMut};
use syn::{
    Block, ExprPath, Macro, Pat, Path, PathArguments, QSelf, Type, UseName, UsePath, UseRename,
    parse_quote,
};

/// The layers of candle-nn, and its caches. A signature that names one is about a field, which has the
/// LoRA type.
pub const LAYERS: &[&str] = &[
    "BatchNorm",
    "ConcatKvCache",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Embedding",
    "GroupNorm",
    "KvCache",
    "LayerNorm",
    "Linear",
    "PReLU",
    "RmsNorm",
    "RotatingKvCache",
];

/// What becomes what.
pub struct Rename {
    /// The type of the impl block, and its LoRA type. The arguments stay: a LoRA type has its base
    /// type's.
    pub own: (Ident, Ident),
    /// Other types that become their LoRA types.
    pub also: Vec<Also>,
    /// Names of layers that stay.
    pub kept: Vec<Ident>,
    /// Type parameters and their associated types that become `Lora<T>`.
    pub layers: Vec<Type>,
    /// Types that the copy finds by itself.
    pub near: Near,
    /// The path of the crate.
    pub krate: TokenStream,
}

/// A type of `also(..)`.
pub struct Also {
    path: Path,
    ident: Ident,
    /// What the LoRA type is called where only a name can stand, as in a pattern.
    lora: Ident,
    /// The name is used, and the path says where the type is.
    is_aliased: bool,
}

impl Also {
    pub fn new(path: &Path) -> Option<Self> {
        let ident = path.segments.last()?.ident.clone();
        Some(Self {
            lora: name::lora(&ident),
            ident,
            path: path.clone(),
            is_aliased: false,
        })
    }

    /// True if the name alone does not lead to the LoRA type.
    fn is_elsewhere(&self) -> bool {
        self.path.segments.len() > 1
    }
}

impl Rename {
    /// The new name of a type that a path names, where no other type stands before it in the path.
    fn name(&mut self, ident: &Ident, before: &[String]) -> Option<Ident> {
        let is_near = |name: &String| matches!(&**name, "self" | "super" | "crate");
        let mut new = if self.own.0 == *ident && before.iter().all(is_near) {
            self.own.1.clone()
        } else {
            let also = self.also.iter_mut().find(|also| also.ident == *ident)?;
            also.is_aliased |= also.is_elsewhere();
            also.lora.clone()
        };
        new.set_span(ident.span());
        Some(new)
    }

    /// Names in the block the LoRA types whose path was given.
    pub fn alias(&mut self, block: &mut Block) {
        let krate = &self.krate;
        for also in &mut self.also {
            if std::mem::take(&mut also.is_aliased) {
                let (name, path) = (&also.lora, &also.path);
                block
                    .stmts
                    .insert(0, parse_quote!(type #name = #krate::Lora<#path>;));
            }
        }
    }

    /// True for a type that the user's or candle's code calls a layer: it becomes `Lora<..>`, which
    /// holds wherever the type is from.
    fn is_layer(&self, path: &Path) -> bool {
        let Some(last) = path.segments.last() else {
            return false;
        };
        let is_own = path.segments.len() == 1 && last.ident == self.own.0;
        let is_candle = LAYERS.iter().any(|name| last.ident == name);
        let is_also = self.also.iter().any(|also| also.ident == last.ident);
        !is_own && !self.kept.contains(&last.ident) && (is_candle || is_also)
    }

    /// `Lora<T>`, if this is such a `T`.
    pub fn lora(&self, ty: &Type) -> Option<Type> {
        let krate = &self.krate;
        self.layers
            .contains(ty)
            .then(|| parse_quote!(#krate::Lora<#ty>))
    }

    /// `Lora<T>`, if the identifier is such a `T`. Identifiers are compared, as the tokens of a macro
    /// hold keywords, too, which are no types.
    fn layer(&self, ident: &Ident) -> Option<Type> {
        let is_named = |ty: &&Type| matches!(ty, Type::Path(ty) if ty.qself.is_none() && ty.path.is_ident(ident));
        let ty = self.layers.iter().find(is_named)?;
        self.lora(ty)
    }

    /// Where a path begins with a type of the user's, asks for the LoRA type.
    fn ask(&mut self, path: &mut Path) {
        let names: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        let Some(at) = names.iter().position(|name| is_type(name)) else {
            return;
        };
        let ident = &path.segments[at].ident;
        let also = self.also.iter().map(|also| &also.lora);
        let mut known = also.chain([&self.own.0, &self.own.1]).chain(&self.kept);
        let is_foreign = matches!(
            &*names[0],
            "candle_core" | "candle_nn" | "candle" | "std" | "core"
        );
        if !is_foreign && !known.any(|known| known == ident) {
            self.near.rename(path, at);
        }
    }

    /// The same of the path of a variant. A name alone may be that of an imported variant, or of a
    /// constant.
    fn ask_of_variant(&mut self, path: &mut Path) {
        let names = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string());
        if names.filter(|name| is_type(name)).count() > 1 {
            self.ask(path);
        }
    }

    /// The name of a type in a `use`, which takes no alias.
    fn used(&mut self, ident: &mut Ident) {
        let also = self.also.iter().map(|also| (&also.ident, &also.lora));
        let mut all = also.chain([(&self.own.0, &self.own.1)]);
        let new = all
            .find(|(old, _)| *old == ident)
            .map(|(_, new)| new.clone());
        if let Some(mut new) = new {
            new.set_span(ident.span());
            *ident = new;
        }
    }

    /// Macros are renamed by their tokens.
    fn tokens(&mut self, tokens: TokenStream) -> TokenStream {
        let mut renamed = TokenStream::new();
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        // The names of the present path before the present token.
        let mut before: Vec<String> = Vec::new();
        let mut colons = 0;
        for (i, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => {
                    let mut new = Group::new(group.delimiter(), self.tokens(group.stream()));
                    new.set_span(group.span());
                    renamed.extend([TokenTree::Group(new)]);
                    before.clear();
                }
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        before.clear();
                    }
                    let path = matches!(
                        tokens.get(i + 1),
                        Some(TokenTree::Punct(next)) if next.as_char() == ':'
                    );
                    let in_type = before.last().is_some_and(|name| is_type(name));
                    let mut new = (!in_type).then(|| self.name(ident, &before)).flatten();
                    let is_asked = before.is_empty() && !self.kept.contains(ident);
                    if new.is_none() && is_asked && is_variant(&tokens[i..]) {
                        new = Some(self.near.name(ident));
                    }
                    match (new, self.layer(ident)) {
                        (Some(new), _) => new.to_tokens(&mut renamed),
                        (None, Some(lora)) if path => renamed.extend(quote!(<#lora>)),
                        (None, Some(lora)) => lora.to_tokens(&mut renamed),
                        (None, None) => ident.to_tokens(&mut renamed),
                    }
                    before.push(ident.to_string());
                    colons = 0;
                }
                other => {
                    let is_colon = matches!(other, TokenTree::Punct(p) if p.as_char() == ':');
                    colons = if is_colon { colons + 1 } else { 0 };
                    renamed.extend([other.clone()]);
                }
            }
        }
        renamed
    }
}

/// True if a name is written as a type's. What follows in the path is the type's own.
pub fn is_type(name: &str) -> bool {
    name.starts_with(|first: char| first.is_uppercase())
}

/// True for tokens that begin with `Type::Variant`.
fn is_variant(tokens: &[TokenTree]) -> bool {
    let is_camel = |name: &Ident| {
        let name = name.to_string();
        is_type(&name) && name.contains(|letter: char| letter.is_lowercase())
    };
    let is_colon = |punct: &proc_macro2::Punct| punct.as_char() == ':';
    matches!(
        tokens,
        [TokenTree::Ident(ty), TokenTree::Punct(a), TokenTree::Punct(b), TokenTree::Ident(variant), ..]
            if is_type(&ty.to_string()) && is_colon(a) && is_colon(b) && is_camel(variant)
    )
}

impl VisitMut for Rename {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if let Some(lora) = self.lora(ty) {
            *ty = lora;
            return;
        }
        match ty {
            Type::Path(path) if path.qself.is_none() && self.is_layer(&path.path) => {
                let krate = &self.krate;
                *ty = parse_quote!(#krate::Lora<#path>);
            }
            Type::Path(path) if path.qself.is_none() => {
                self.visit_path_mut(&mut path.path);
                self.ask(&mut path.path);
            }
            _ => visit_mut::visit_type_mut(self, ty),
        }
    }

    fn visit_pat_mut(&mut self, pat: &mut Pat) {
        visit_mut::visit_pat_mut(self, pat);
        match pat {
            Pat::Struct(pat) => self.ask_of_variant(&mut pat.path),
            Pat::TupleStruct(pat) => self.ask_of_variant(&mut pat.path),
            Pat::Path(pat) => self.ask_of_variant(&mut pat.path),
            _ => {}
        }
    }

    fn visit_path_mut(&mut self, path: &mut Path) {
        let names: Vec<String> = path
            .segments
            .iter()
            .map(|s| s.ident.unraw().to_string())
            .collect();
        let ty = names.iter().position(|name| is_type(name));
        for (i, segment) in path.segments.iter_mut().enumerate() {
            let renamed = match ty == Some(i) {
                true => self.name(&segment.ident, &names[..i]),
                false => None,
            };
            match renamed {
                Some(new) => segment.ident = new,
                None if segment.arguments != PathArguments::None => {
                    self.visit_path_arguments_mut(&mut segment.arguments);
                }
                None => {}
            }
        }
        let place = ty
            .and_then(|i| path.segments.get(i))
            .map(|segment| &segment.ident);
        let elsewhere = self
            .also
            .iter()
            .any(|also| also.is_aliased && place.is_some_and(|name| *name == also.lora));
        if let (true, Some(ty)) = (elsewhere, ty) {
            // The alias stands in the block, wherever the type is.
            path.leading_colon = None;
            path.segments = path.segments.iter().skip(ty).cloned().collect();
        }
    }

    /// `T::new` becomes `<Lora<T>>::new`.
    fn visit_expr_path_mut(&mut self, expr: &mut ExprPath) {
        let first = expr.path.segments.first();
        let lora = first.and_then(|first| self.layer(&first.ident));
        if let (None, Some(lora)) = (&expr.qself, lora)
            && expr.path.segments.len() > 1
        {
            let rest = expr.path.segments.iter().skip(1);
            expr.path = parse_quote!(:: #(#rest)::*);
            expr.qself = Some(QSelf {
                lt_token: Default::default(),
                ty: Box::new(lora),
                position: 0,
                as_token: None,
                gt_token: Default::default(),
            });
            // The parameter inside is done.
            self.visit_path_mut(&mut expr.path);
        } else {
            visit_mut::visit_expr_path_mut(self, expr);
        }
    }

    fn visit_macro_mut(&mut self, call: &mut Macro) {
        let tokens = std::mem::take(&mut call.tokens);
        call.tokens = self.tokens(tokens);
    }

    /// What follows a type in the path is the type's own, such as a variant.
    fn visit_use_path_mut(&mut self, path: &mut UsePath) {
        match is_type(&path.ident.to_string()) {
            true => self.used(&mut path.ident),
            false => visit_mut::visit_use_path_mut(self, path),
        }
    }

    fn visit_use_name_mut(&mut self, name: &mut UseName) {
        self.used(&mut name.ident);
    }

    fn visit_use_rename_mut(&mut self, rename: &mut UseRename) {
        self.used(&mut rename.ident);
    }
}
