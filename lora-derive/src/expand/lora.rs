//! The impls of the LoRA type: `LoraModule`, and its supertraits `Clone` and `Debug`.

use crate::ast::{Field, Item, Kind, Style};
use crate::bounds::Bounds;
use crate::expand::body::{Place, body, body_mut};
use crate::expand::span::{around, at, local, value_at};
use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::ext::IdentExt;
use syn::{Ident, Member};

pub fn expand(item: &Item<'_>, bounds: &Bounds) -> TokenStream {
    let (ident, lora) = (item.ident, &item.lora);
    let (params, args, clause) = bounds.impls.split_for_impl();
    let to_base = body(
        item,
        |_| true,
        |place| {
            let value = place.construct(ident, |field| to_base(place, field));
            quote!(_lora::Ok(#value))
        },
    );
    let is_model = |field: &Field<'_>| field.kind.is_model();
    let visit = body(item, is_model, |place| walk(place, &quote!(visit)));
    let visit_mut = body_mut(item, is_model, |place| walk(place, &quote!(visit_mut)));
    let cursor = match item.fields().any(is_model) {
        true => local("cursor").to_token_stream(),
        false => quote!(_),
    };
    let f = local("f");
    let clone = clone(item);
    let is_shown = |field: &Field<'_>| field.kind.is_shown();
    let debug = body(item, is_shown, |place| debug(lora, place));
    quote! {
        #[automatically_derived]
        impl #params _lora::LoraModule for #lora #args #clause {
            type Base = #ident #args;

            fn to_base(&self) -> _lora::Result<#ident #args> {
                #to_base
            }

            fn visit(&self, #cursor: &mut _lora::Cursor<'_>) {
                #visit
            }

            fn visit_mut(&mut self, #cursor: &mut _lora::CursorMut<'_>) {
                #visit_mut
            }
        }

        #[automatically_derived]
        impl #params _lora::Clone for #lora #args #clause {
            /// Shares the variables: the clone changes as training goes on. `deep_clone` gives a snapshot.
            fn clone(&self) -> Self {
                #clone
            }
        }

        #[automatically_derived]
        impl #params _lora::Debug for #lora #args #clause {
            fn fmt(&self, #f: &mut _lora::Formatter<'_>) -> _lora::FmtResult {
                #debug
            }
        }
    }
}

/// The value of a field of the base type.
fn to_base(place: &Place<'_>, field: &Field<'_>) -> TokenStream {
    let value = place.get(field);
    match &field.kind {
        Kind::Skip => quote!(_lora::skipped(#value)),
        Kind::Config { .. } => quote!(_lora::Clone::clone(_lora::WithLora::base(#value))),
        Kind::Parts(parts) => {
            let (value, place) = (at(field, value), Place::parts(parts));
            let pattern = place.tuple(|_| true);
            let values = place.values(|part| to_base(&place, part));
            let make = around(field, quote!(&mut |_, #pattern| _lora::Ok(#values)));
            around(field, quote!(_lora::Tuples::map(#value, "", #make)?))
        }
        _ => quote!(_lora::LoraModule::to_base(#value)?),
    }
}

/// The walk over the fields that have layers.
fn walk(place: &Place<'_>, method: &TokenStream) -> TokenStream {
    let fields = place.fields.fields.iter();
    let models = fields.filter(|field| field.kind.is_model());
    let calls = models.map(|field| {
        let cursor = match field.attrs.routed {
            Some(_) => local("routed"),
            None => local("cursor"),
        };
        let value = place.get(field);
        let call = match (&field.kind, &field.segment) {
            (Kind::Parts(parts), name) => {
                let name = name.as_deref().unwrap_or_default();
                let (value, place) = (at(field, value), Place::parts(parts));
                let pattern = place.tuple(|part| part.kind.is_model());
                let (inner, walk) = (local("cursor"), walk(&place, method));
                let walk = around(field, quote!(|#inner, #pattern| { #walk }));
                around(field, quote!(#cursor.parts(#name, #value, #walk)))
            }
            (_, Some(name)) => quote!(#cursor.field(#name, #value)),
            (_, None) => quote!(_lora::LoraModule::#method(#value, #cursor)),
        };
        let call = value_at(field, call);
        match field.attrs.routed {
            Some(_) => {
                let outer = local("cursor");
                quote!(#outer.routed(|#cursor| #call))
            }
            None => call,
        }
    });
    quote!(#(#calls;)*)
}

fn clone(item: &Item<'_>) -> TokenStream {
    body(
        item,
        |_| true,
        |place| {
            let this = Ident::new("Self", proc_macro2::Span::call_site());
            place.construct(&this, |field| cloned(place, field))
        },
    )
}

/// The clone of a field.
fn cloned(place: &Place<'_>, field: &Field<'_>) -> TokenStream {
    let value = place.get(field);
    match &field.kind {
        Kind::Skip => quote!(_lora::skipped(#value)),
        Kind::Parts(parts) if !field.kind.is_shown() => {
            let (value, place) = (at(field, value), Place::parts(parts));
            let pattern = place.tuple(|_| true);
            let values = place.values(|part| cloned(&place, part));
            let clone = around(field, quote!(|#pattern| #values));
            around(field, quote!(_lora::cloned_parts(#value, #clone)))
        }
        Kind::Parts(_) => at(field, quote!(_lora::Clone::clone(#value))),
        _ => quote!(_lora::Clone::clone(#value)),
    }
}

/// Fields under `skip` need no `Debug`: they are left out. One call of a function, as a chain of calls
/// takes the compiler longer.
fn debug(lora: &Ident, place: &Place<'_>) -> TokenStream {
    let f = local("f");
    let name = place.variant.unwrap_or(lora).unraw().to_string();
    let fields = &place.fields.fields;
    let shown: Vec<_> = fields
        .iter()
        .filter(|field| field.kind.is_shown())
        .collect();
    let all = shown.len() == fields.len();
    let values = shown.iter().map(|field| at(field, place.get(field)));
    match place.fields.style {
        Style::Unit => quote!(#f.write_str(#name)),
        Style::Tuple => quote!(_lora::debug_tuple(#f, #name, &[#(#values),*], #all)),
        Style::Named => {
            let names = shown.iter().map(|field| match &field.member {
                Member::Named(name) => name.unraw().to_string(),
                Member::Unnamed(index) => index.index.to_string(),
            });
            quote!(_lora::debug_struct(#f, #name, &[#((#names, #values)),*], #all))
        }
    }
}
