//! Types that the copy finds by itself: where a type has a LoRA type, the copy speaks of that one.
//!
//! The macro cannot know which types have one. The compiler does: next to the LoRA type of `Proj` the
//! derive leaves the name `__lora_of_Proj`, the copy says `__lora_of_Proj` for `Proj`, and the name means
//! `Proj` itself where the derive left none. Blocks around the copy see to that order: names of an inner
//! block come first, and the inner block has all names of the module.

use crate::name;
use proc_macro2::{Ident, TokenStream};
use quote::quote;
use std::collections::{BTreeMap, HashSet};
use syn::visit::{self, Visit};
use syn::{Attribute, Generics, ImplItemFn, Item, Path, PathArguments, UseName, UseRename};

/// Names that have no LoRA type for sure, which would only make the expansion longer.
const PLAIN: &[&str] = &[
    "Activation",
    "Arc",
    "Box",
    "D",
    "DType",
    "Device",
    "Err",
    "Error",
    "Fn",
    "FnMut",
    "FnOnce",
    "HashMap",
    "IntoIter",
    "None",
    "Ok",
    "Option",
    "Rc",
    "Result",
    "Self",
    "Shape",
    "Some",
    "String",
    "Tensor",
    "Var",
    "VarBuilder",
    "Vec",
];

/// The types that the copy asks for.
#[derive(Default)]
pub struct Near {
    /// By name: the path as the user wrote it.
    found: BTreeMap<String, Path>,
    /// Names that mean something else in the block: parameters, and what methods declare.
    taken: HashSet<String>,
    is_resting: bool,
}

impl Near {
    /// Asks for nothing, until told otherwise.
    pub fn rest(&mut self, rest: bool) {
        self.is_resting = rest;
    }

    /// Names that are no types of the module: the parameters.
    pub fn take(&mut self, generics: &Generics) {
        let names = generics.params.iter().filter_map(|param| match param {
            syn::GenericParam::Type(param) => Some(param.ident.to_string()),
            syn::GenericParam::Const(param) => Some(param.ident.to_string()),
            syn::GenericParam::Lifetime(_) => None,
        });
        self.taken.extend(names);
    }

    /// The same of a method, and what its body declares.
    pub fn take_from(&mut self, method: &ImplItemFn) {
        self.take(&method.sig.generics);
        Declared(&mut self.taken).visit_block(&method.block);
    }

    /// Turns the type at a place in a path into the name that the derive may have left, with nothing
    /// before it.
    pub fn rename(&mut self, path: &mut Path, at: usize) {
        let ident = path.segments[at].ident.clone();
        let name = ident.to_string();
        if self.is_resting
            || path.leading_colon.is_some()
            || PLAIN.contains(&&*name)
            || self.taken.contains(&name)
        {
            return;
        }
        let mut written = path.clone();
        written.segments = path.segments.iter().take(at + 1).cloned().collect();
        for segment in &mut written.segments {
            segment.arguments = PathArguments::None;
        }
        // Two types of one name in one block: the copy cannot tell which is meant.
        if self.found.get(&name).is_some_and(|other| *other != written) {
            return;
        }
        self.found.insert(name, written);
        path.segments = path.segments.iter().skip(at).cloned().collect();
        path.segments[0].ident = name::left(&ident);
    }

    /// The same for a type in a macro's tokens, where nothing stands before the type.
    pub fn name(&mut self, ident: &Ident) -> Ident {
        let mut path = Path::from(ident.clone());
        self.rename(&mut path, 0);
        path.segments[0].ident.clone()
    }

    /// The copy, in the blocks that give the names their meaning, under the same conditions.
    pub fn wrap(&self, conditions: &[Attribute], copy: TokenStream) -> TokenStream {
        if self.found.is_empty() {
            return copy;
        }
        let names = self.found.values().filter_map(|path| {
            let left = name::left(&path.segments.last()?.ident);
            Some(quote!(use #path as #left;))
        });
        let mut rooms: Vec<TokenStream> = Vec::new();
        for path in self.found.values() {
            let room: Vec<&Ident> = path.segments.iter().map(|segment| &segment.ident).collect();
            if let [room @ .., _] = &room[..]
                && !room.is_empty()
            {
                let room = quote!(#(#room)::*);
                if rooms
                    .iter()
                    .all(|other| other.to_string() != room.to_string())
                {
                    rooms.push(room);
                }
            }
        }
        let mut inner = block(&[quote!(self)], &copy);
        if !rooms.is_empty() {
            // What a file need not import comes before what happens to be in another module.
            inner = block(&[quote!(::std::prelude::v1)], &inner);
            inner = block(&rooms, &inner);
        }
        quote! {
            #(#conditions)*
            #[allow(unused_imports)]
            const _: () = {
                #(#names)*
                #inner
            };
        }
    }
}

/// A block in which all names of some modules are known.
fn block(rooms: &[TokenStream], inner: &TokenStream) -> TokenStream {
    quote! {
        const _: () = {
            #(use #rooms::*;)*
            #inner
        };
    }
}

/// Collects the names of items and imports in a body.
struct Declared<'a>(&'a mut HashSet<String>);

impl<'ast> Visit<'ast> for Declared<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let name = match item {
            Item::Enum(item) => Some(&item.ident),
            Item::Struct(item) => Some(&item.ident),
            Item::Type(item) => Some(&item.ident),
            Item::Union(item) => Some(&item.ident),
            _ => None,
        };
        self.0.extend(name.map(Ident::to_string));
        visit::visit_item(self, item);
    }

    fn visit_use_name(&mut self, name: &'ast UseName) {
        self.0.insert(name.ident.to_string());
    }

    fn visit_use_rename(&mut self, name: &'ast UseRename) {
        self.0.insert(name.rename.to_string());
    }
}
