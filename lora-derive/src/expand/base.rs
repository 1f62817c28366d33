//! `impl LoraModel` for the base type.

use crate::ast::{Field, Fields, Item, Kind};
use crate::bounds::Bounds;
use crate::expand::body::{Place, body};
use crate::expand::span::{around, at, local};
use proc_macro2::{Literal, TokenStream};
use quote::{ToTokens, quote};

pub fn expand(item: &Item<'_>, bounds: &Bounds) -> TokenStream {
    let (ident, lora) = (item.ident, &item.lora);
    let (params, args, clause) = bounds.impls.split_for_impl();
    let adapt = body(
        item,
        |_| true,
        |place| {
            let value = place.construct(lora, |field| adapt(place, field));
            quote!(_lora::Ok(#value))
        },
    );
    let cx = match item.fields().all(|field| field.kind.is_skipped()) {
        true => quote!(_),
        false => local("cx").to_token_stream(),
    };
    quote! {
        #[automatically_derived]
        impl #params _lora::LoraModel for #ident #args #clause {
            type Lora = #lora #args;

            fn adapt(&self, #cx: &mut _lora::Builder<'_>) -> _lora::Result<#lora #args> {
                #adapt
            }
        }

        impl #params _lora::LoraLayer for #ident #args #clause {}
    }
}

/// The LoRA value of a field.
fn adapt(place: &Place<'_>, field: &Field<'_>) -> TokenStream {
    let cx = local("cx");
    let value = place.get(field);
    if let Kind::Parts(parts) = &field.kind {
        return adapt_parts(field, parts, &at(field, value));
    }
    let value = match field.kind {
        Kind::Rank { .. } => quote!(_lora::layer(#value)),
        _ => value,
    };
    let (method, args) = match (mark(&field.kind), &field.segment) {
        _ if field.kind.is_skipped() => return quote!(_lora::skipped(#value)),
        _ if !field.kind.is_model() => return quote!(#cx.config(#value)),
        (None, None) => return quote!(_lora::LoraModel::adapt(#value, #cx)?),
        (Some(mark), Some(name)) => (quote!(marked), quote!(#name, #mark, #value)),
        (Some(mark), None) => (quote!(flattened), quote!(#mark, #value)),
        (None, Some(name)) => (quote!(field), quote!(#name, #value)),
    };
    let cx = match &field.attrs.name {
        Some(_) => quote!(#cx.named()),
        None => quote!(#cx),
    };
    // At a path, unlike at a method, rustc's errors about a bad type are all the same: one.
    match field.is_known() {
        true => quote!(#cx.#method(#args)?),
        false => quote!(_lora::Builder::#method(#cx, #args)?),
    }
}

/// The same of a field with tuples.
fn adapt_parts(field: &Field<'_>, parts: &Fields<'_>, value: &TokenStream) -> TokenStream {
    let cx = local("cx");
    let name = field.segment.as_deref().unwrap_or_default();
    let named = field.attrs.name.iter().map(|_| quote!(.named()));
    let used = match parts.fields.iter().all(|part| part.kind.is_skipped()) {
        true => quote!(_),
        false => cx.to_token_stream(),
    };
    let place = Place::parts(parts);
    let pattern = place.tuple(|_| true);
    let values = place.values(|part| adapt(&place, part));
    let around = |tokens| around(field, tokens);
    let convert = around(quote!(|#used, #pattern| _lora::Ok(#values)));
    let call = around(quote!(parts(#name, #value, #convert)));
    around(quote!(#cx #(#named)* . #call ?))
}

/// The mark of a field's attributes.
fn mark(kind: &Kind<'_>) -> Option<TokenStream> {
    let option = |value: &Option<f64>| match value {
        Some(value) => {
            let value = Literal::f64_unsuffixed(*value);
            quote!(_lora::Some(#value))
        }
        None => quote!(_lora::None),
    };
    match kind {
        Kind::Rank {
            rank,
            alpha,
            dropout,
        } => {
            let (a, p) = (option(alpha), option(dropout));
            Some(match rank {
                Some(rank) => {
                    let rank = Literal::usize_unsuffixed(*rank);
                    quote!(_lora::Mark::rank_of(#rank, #a, #p))
                }
                None if alpha.is_none() && dropout.is_none() => quote!(_lora::Mark::rank()),
                None => quote!(_lora::Mark::rank_with(#a, #p)),
            })
        }
        Kind::Trainable => Some(quote!(_lora::Mark::trainable())),
        Kind::Model | Kind::Skip | Kind::Config { .. } | Kind::Parts(_) => None,
    }
}
