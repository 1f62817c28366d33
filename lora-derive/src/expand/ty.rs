//! The definition of the LoRA type.

use crate::ast::{Data, Field, Fields, Item, Kind, Style};
use crate::bounds::Bounds;
use crate::expand::span::{around, spread};
use crate::{name, tuple};
use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::Member;

pub fn expand(item: &Item<'_>, bounds: &Bounds, krate: &TokenStream) -> TokenStream {
    let Item {
        ident,
        lora,
        vis,
        kept,
        ..
    } = item;
    let generics = &bounds.lora;
    let clause = &generics.where_clause;
    let doc = format!(" The LoRA counterpart of [`{ident}`].");
    let derives = item.attrs.derives.iter().map(|given| {
        let paths = &given.value;
        quote!(#[derive(#(#paths),*)])
    });
    let head = quote!(#[doc = #doc] #(#kept)* #(#derives)* #vis);
    let definition = match &item.data {
        Data::Struct(fields) => {
            let body = definition(fields.style, ordered(fields), krate);
            match fields.style {
                Style::Named => quote!(#head struct #lora #generics #clause #body),
                _ => quote!(#head struct #lora #generics #body #clause;),
            }
        }
        Data::Enum(variants) => {
            let variants = variants.iter().map(|variant| {
                let (ident, kept, fields) = (variant.ident, &variant.kept, &variant.fields);
                let body = definition(fields.style, fields.fields.iter(), krate);
                quote!(#(#kept)* #ident #body)
            });
            quote!(#head enum #lora #generics #clause { #(#variants),* })
        }
    };
    let aliases = item.fields().filter_map(|field| alias(item, field, krate));
    let left = name::left(ident);
    let cfgs = kept.iter().filter(|attr| attr.path().is_ident("cfg"));
    quote! {
        #definition
        #(#cfgs)*
        #[doc(hidden)]
        #[allow(unused_imports)]
        #vis use #lora as #left;
        #(#aliases)*
    }
}

fn definition<'a>(
    style: Style,
    fields: impl Iterator<Item = &'a Field<'a>>,
    krate: &TokenStream,
) -> TokenStream {
    let definitions = fields.map(|field| {
        let (kept, vis) = (&field.kept, field.vis);
        let ty = lora_type(field, krate);
        match &field.member {
            Member::Named(name) => quote!(#(#kept)* #vis #name: #ty),
            Member::Unnamed(_) => quote!(#(#kept)* #vis #ty),
        }
    });
    match style {
        Style::Named => quote!({ #(#definitions),* }),
        Style::Tuple => quote!((#(#definitions),*)),
        Style::Unit => TokenStream::new(),
    }
}

/// The fields, with the one that most likely has a size at the end.
///
/// Whether a struct has a size hangs on its last field. If that is no model, every mention of the
/// struct is an error of its own, beside the one that counts.
fn ordered<'a>(fields: &'a Fields<'a>) -> impl Iterator<Item = &'a Field<'a>> {
    let all = &fields.fields;
    let end = match (fields.style, all.last()) {
        (Style::Named, Some(last)) if !last.is_known() => {
            // Among equals the first: what a model begins with is a layer, what it ends with is often
            // a configuration.
            let by_trust = |i: &usize| (all[*i].trust, usize::MAX - i);
            (0..all.len()).max_by_key(by_trust)
        }
        _ => None,
    };
    let others = all.iter().enumerate().filter(move |(i, _)| Some(*i) != end);
    let others = others.map(|(_, field)| field);
    others.chain(end.and_then(|end| all.get(end)))
}

/// The type of a field of the LoRA type.
fn lora_type(field: &Field<'_>, krate: &TokenStream) -> TokenStream {
    let ty = field.ty;
    match &field.kind {
        Kind::Skip => ty.to_token_stream(),
        Kind::Config { .. } => wrap(field, &quote!(#krate::WithLora)),
        Kind::Parts(parts) => {
            let parts = parts.fields.iter();
            let types = parts.map(|part| lora_type(part, krate));
            tuple::with(ty, around(field, quote!((#(#types,)*))))
        }
        _ => wrap(field, &quote!(#krate::Lora)),
    }
}

/// `wrapper<ty>`, at the place of the type in messages.
fn wrap(field: &Field<'_>, wrapper: &TokenStream) -> TokenStream {
    let (first, last) = field.ends;
    let ty = field.ty;
    let open = spread(quote!(#wrapper <), first, first);
    let close = spread(quote!(>), last, last);
    quote!(#open #ty #close)
}

/// The alias of `#[lora(config = LoraNetConfig)]`.
fn alias(item: &Item<'_>, field: &Field<'_>, krate: &TokenStream) -> Option<TokenStream> {
    let Kind::Config { alias: Some(alias) } = &field.kind else {
        return None;
    };
    let (vis, ty) = (item.vis, field.ty);
    let doc = format!(
        " The configuration of [`{}`] and that of its conversion.",
        item.lora
    );
    Some(quote! {
        #[doc = #doc]
        #vis type #alias = #krate::WithLora<#ty>;
    })
}
