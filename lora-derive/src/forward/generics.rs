//! The parameters of the copy, and their bounds.

use super::items::mentions;
use super::rename::{LAYERS, Rename};
use crate::ctxt::Ctxt;
use quote::ToTokens;
use syn::visit_mut::VisitMut;
use syn::{Generics, Ident, ItemImpl, Type, TypeParamBound, WherePredicate, parse_quote};

/// The type parameters of the type, less the skipped ones, and the associated types that the
/// block's where clauses speak of.
pub fn layers(cx: &Ctxt, skipped: &[Ident], base: &ItemImpl) -> Vec<Type> {
    let params = || base.generics.type_params();
    for name in skipped {
        let is_layer = LAYERS.iter().any(|layer| name == layer);
        if !is_layer && !params().any(|param| param.ident == *name) {
            let message = format!("`{name}` is not a type parameter of this impl block");
            cx.error(name, message);
        }
    }
    let own = params()
        .filter(|param| mentions(&base.self_ty, &param.ident) && !skipped.contains(&param.ident));
    let mut layers: Vec<Type> = own.map(|param| param.ident.clone()).map(ty).collect();
    for predicate in base
        .generics
        .where_clause
        .iter()
        .flat_map(|c| &c.predicates)
    {
        if let WherePredicate::Type(predicate) = predicate
            && let Type::Path(bounded) = &predicate.bounded_ty
            && bounded.path.segments.len() > 1
            && let Some(first) = bounded.path.segments.first()
            && params().any(|param| param.ident == first.ident)
        {
            layers.push(predicate.bounded_ty.clone());
        }
    }
    layers
}

fn ty(ident: Ident) -> Type {
    parse_quote!(#ident)
}

/// The generics with `T: LoraModel` for each layer, and its bounds for `Lora<T>` too.
pub fn generics(rename: &mut Rename, base: &Generics) -> Generics {
    let krate = rename.krate.clone();
    let mut predicates: Vec<WherePredicate> = Vec::new();
    for layer in &rename.layers {
        predicates.push(parse_quote!(#layer: #krate::LoraModel));
    }
    let inline = base
        .type_params()
        .map(|param| (ty(param.ident.clone()), &param.bounds));
    let clauses = base
        .where_clause
        .iter()
        .flat_map(|clause| &clause.predicates);
    let clauses = clauses.filter_map(|predicate| match predicate {
        WherePredicate::Type(predicate) if predicate.lifetimes.is_none() => {
            Some((predicate.bounded_ty.clone(), &predicate.bounds))
        }
        _ => None,
    });
    let all: Vec<_> = inline.chain(clauses).collect();
    for (bounded, bounds) in all {
        let mut lora = bounded.clone();
        rename.visit_type_mut(&mut lora);
        if lora == bounded {
            continue;
        }
        let bounds = bounds.iter().filter(|bound| !is_relaxed(bound));
        let mut bounds: Vec<TypeParamBound> = bounds.cloned().collect();
        for bound in &mut bounds {
            rename.visit_type_param_bound_mut(bound);
        }
        if !bounds.is_empty() {
            predicates.push(parse_quote!(#lora: #(#bounds)+*));
        }
    }
    let mut generics = base.clone();
    if !predicates.is_empty() {
        generics.make_where_clause().predicates.extend(predicates);
    }
    generics
}

/// `?Sized`
fn is_relaxed(bound: &TypeParamBound) -> bool {
    bound.to_token_stream().to_string().starts_with('?')
}
