//! The tuple that a field's type is, or holds.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::visit_mut::{self, VisitMut};
use syn::{GenericArgument, PathArguments, Type, TypeTuple};

/// The tuple in a type: `(A, B)` of `Vec<(A, B)>`.
pub fn within(ty: &Type) -> Option<&TypeTuple> {
    match ty {
        Type::Tuple(tuple) => Some(tuple),
        Type::Array(array) => within(&array.elem),
        Type::Group(group) => within(&group.elem),
        Type::Paren(paren) => within(&paren.elem),
        Type::Path(path) => {
            let PathArguments::AngleBracketed(arguments) = &path.path.segments.last()?.arguments
            else {
                return None;
            };
            arguments.args.iter().find_map(|argument| match argument {
                GenericArgument::Type(ty) => within(ty),
                _ => None,
            })
        }
        _ => None,
    }
}

/// The type with another tuple: `Vec<(C, D)>` for `Vec<(A, B)>`.
pub fn with(ty: &Type, tuple: TokenStream) -> TokenStream {
    let Some(old) = within(ty) else {
        return ty.to_token_stream();
    };
    let new = Type::Verbatim(tuple);
    let mut all = ty.clone();
    Replace { old, new }.visit_type_mut(&mut all);
    all.to_token_stream()
}

struct Replace<'a> {
    old: &'a TypeTuple,
    new: Type,
}

impl VisitMut for Replace<'_> {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        match ty {
            Type::Tuple(tuple) if tuple == self.old => *ty = self.new.clone(),
            _ => visit_mut::visit_type_mut(self, ty),
        }
    }
}
