//! Which of an item's parameters a type has in it.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::visit::{self, Visit};
use syn::{Expr, GenericParam, Generics, Ident, Type, TypeFnPtr, TypePath};

/// True if the type mentions any parameter.
pub fn mentions(ty: &Type, generics: &Generics) -> bool {
    let params: Vec<_> = generics
        .params
        .iter()
        .map(|param| match param {
            GenericParam::Lifetime(param) => param.lifetime.ident.to_string(),
            GenericParam::Type(param) => param.ident.to_string(),
            GenericParam::Const(param) => param.ident.to_string(),
        })
        .collect();
    has_any(ty.to_token_stream(), &|name| {
        params.contains(&name.to_string())
    })
}

/// True if an identifier among the tokens is one of those that are looked for.
pub fn has_any(tokens: TokenStream, is_one: &impl Fn(&Ident) -> bool) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => is_one(&ident),
        TokenTree::Group(group) => has_any(group.stream(), is_one),
        _ => false,
    })
}

/// The type parameters in a type, and their associated types.
pub fn uses(ty: &Type, generics: &Generics) -> Vec<Type> {
    let mut uses = Uses {
        generics,
        found: Vec::new(),
    };
    uses.visit_type(ty);
    uses.found
}

struct Uses<'a> {
    generics: &'a Generics,
    found: Vec<Type>,
}

impl<'ast> Visit<'ast> for Uses<'_> {
    fn visit_type_path(&mut self, ty: &'ast TypePath) {
        let Some(first) = ty.path.segments.first() else {
            return;
        };
        let mut params = self.generics.type_params();
        let param = params.any(|param| first.ident == param.ident) && ty.qself.is_none();
        let projection = match &ty.qself {
            Some(qself) => mentions(&qself.ty, self.generics),
            None => false,
        };
        let last = ty.path.segments.last();
        if param || projection {
            self.found.push(Type::Path(ty.clone()));
        } else if last.is_some_and(|last| last.ident != "PhantomData") {
            visit::visit_type_path(self, ty);
        }
    }

    // What holds no value of a parameter needs no bound.
    fn visit_type_fn_ptr(&mut self, _: &'ast TypeFnPtr) {}

    fn visit_expr(&mut self, _: &'ast Expr) {}
}
