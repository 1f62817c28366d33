//! `impl LoraModel` for the base type.

use crate::ast::{Field, Item, Kind};
use crate::bounds::Bounds;
use crate::expand::body::{Place, body};
use crate::expand::span::local;
use proc_macro2::TokenStream;
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
    let cx = match item.fields().all(|field| field.kind == Kind::Skip) {
        true => quote!(_),
        false => local("cx").to_token_stream(),
    };
    quote! {
        #[automatically_derived]
        impl #params _lora::LoraModel for #ident #args #clause {
            type Lora = #lora #args;

            fn adapt(&self, #cx: &mut _lora::Builder<'_>) -> _lora::Result<Self::Lora> {
                #adapt
            }
        }
    }
}

/// The LoRA value of a field.
fn adapt(place: &Place<'_>, field: &Field<'_>) -> TokenStream {
    let cx = local("cx");
    let value = place.get(field);
    let value = match field.kind {
        Kind::Rank { .. } => quote!(_lora::layer(#value)),
        _ => value,
    };
    match (mark(&field.kind), &field.segment) {
        _ if field.kind == Kind::Skip => quote!(_lora::Clone::clone(#value)),
        _ if !field.kind.is_model() => quote!(#cx.config(#value)),
        (Some(mark), Some(name)) => quote!(_lora::Builder::marked(#cx, #name, #mark, #value)?),
        (Some(mark), None) => quote!(_lora::Builder::flattened(#cx, #mark, #value)?),
        (None, Some(name)) => quote!(_lora::Builder::field(#cx, #name, #value)?),
        (None, None) => quote!(_lora::LoraModel::adapt(#value, #cx)?),
    }
}

/// The mark of a field's attributes.
fn mark(kind: &Kind) -> Option<TokenStream> {
    let option = |value: &Option<f64>| match value {
        Some(value) => quote!(_lora::Some(#value)),
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
                    let rank = proc_macro2::Literal::usize_unsuffixed(*rank);
                    quote!(_lora::Mark::rank_of(#rank, #a, #p))
                }
                None if alpha.is_none() && dropout.is_none() => quote!(_lora::Mark::rank()),
                None => quote!(_lora::Mark::rank_with(#a, #p)),
            })
        }
        Kind::Trainable => Some(quote!(_lora::Mark::trainable())),
        Kind::Model | Kind::Skip | Kind::Config { .. } => None,
    }
}
