//! Finds the field that a message of the compiler is about.

use super::{Place, names, scoped};
use proc_macro2::LineColumn;
use std::path::Path;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Field, ItemEnum, ItemMod, ItemStruct};

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
