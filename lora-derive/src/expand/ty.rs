//! The definition of the LoRA type.

use crate::ast::{Data, Field, Fields, Item, Kind, Style};
use crate::bounds::Bounds;
use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Member, Type};

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
    let doc = format!("The LoRA counterpart of [`{ident}`].");
    let derives = item.attrs.derives.iter().map(|given| {
        let paths = &given.value;
        quote!(#[derive(#(#paths),*)])
    });
    let head = quote!(#[doc = #doc] #(#kept)* #(#derives)* #vis);
    let definition = match &item.data {
        Data::Struct(fields) => {
            let body = definition(fields, krate);
            match fields.style {
                Style::Named => quote!(#head struct #lora #generics #clause #body),
                _ => quote!(#head struct #lora #generics #body #clause;),
            }
        }
        Data::Enum(variants) => {
            let variants = variants.iter().map(|variant| {
                let (ident, kept) = (variant.ident, &variant.kept);
                let body = definition(&variant.fields, krate);
                quote!(#(#kept)* #ident #body)
            });
            quote!(#head enum #lora #generics #clause { #(#variants),* })
        }
    };
    let aliases = item.fields().filter_map(|field| alias(item, field, krate));
    quote!(#definition #(#aliases)*)
}

fn definition(fields: &Fields<'_>, krate: &TokenStream) -> TokenStream {
    let definitions = fields.fields.iter().map(|field| {
        let (kept, vis) = (&field.kept, field.vis);
        let ty = lora_type(field, krate);
        match &field.member {
            Member::Named(name) => quote!(#(#kept)* #vis #name: #ty),
            Member::Unnamed(_) => quote!(#(#kept)* #vis #ty),
        }
    });
    match fields.style {
        Style::Named => quote!({ #(#definitions),* }),
        Style::Tuple => quote!((#(#definitions),*)),
        Style::Unit => TokenStream::new(),
    }
}

/// The type of a field of the LoRA type.
fn lora_type(field: &Field<'_>, krate: &TokenStream) -> TokenStream {
    let ty = field.ty;
    match field.kind {
        Kind::Skip => ty.to_token_stream(),
        Kind::Config { .. } => wrap(ty, &quote!(#krate::WithLora)),
        _ => wrap(ty, &quote!(#krate::Lora)),
    }
}

/// `wrapper<ty>`, underlined where the type is: rustc joins the spans of the first and the last
/// token.
pub fn wrap(ty: &Type, wrapper: &TokenStream) -> TokenStream {
    let (first, last) = ends(ty);
    let wrapper = wrapper.clone().into_iter().map(|mut token| {
        token.set_span(token.span().located_at(first));
        token
    });
    let wrapper: TokenStream = wrapper.collect();
    let open = quote_spanned!(first=> <);
    let close = quote_spanned!(last=> >);
    quote!(#wrapper #open #ty #close)
}

/// Where the first and the last token of the type are.
pub fn ends(ty: &Type) -> (Span, Span) {
    let last = ty.to_token_stream().into_iter().last();
    let last = last.map_or_else(|| ty.span(), |token| token.span());
    let here = Span::mixed_site();
    (here.located_at(ty.span()), here.located_at(last))
}

/// The alias of `#[lora(config = LoraNetConfig)]`.
fn alias(item: &Item<'_>, field: &Field<'_>, krate: &TokenStream) -> Option<TokenStream> {
    let Kind::Config { alias: Some(alias) } = &field.kind else {
        return None;
    };
    let (vis, ty) = (item.vis, field.ty);
    let doc = format!(
        "The configuration of [`{}`] and that of its conversion.",
        item.lora
    );
    Some(quote! {
        #[doc = #doc]
        #vis type #alias = #krate::WithLora<#ty>;
    })
}
