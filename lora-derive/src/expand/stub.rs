//! What stands in for the expansion of an item with errors: the same names, without bodies.

use crate::ast::{Data, Fields, Item, Style};
use proc_macro2::TokenStream;
use quote::quote;

/// The definition and the impls. Fields keep their types, and no bounds are added, so that nothing
/// here has an error of its own.
pub fn expand(item: &Item<'_>) -> (TokenStream, TokenStream) {
    let (ident, generics) = (item.ident, item.generics);
    let (params, args, clause) = generics.split_for_impl();
    let lora = match item.plain {
        true => ident,
        false => &item.lora,
    };
    let definition = match item.plain {
        true => TokenStream::new(),
        false => definition(item),
    };
    let clone_and_debug = (!item.plain).then(|| {
        quote! {
            impl #params _lora::Clone for #lora #args #clause {
                fn clone(&self) -> Self {
                    loop {}
                }
            }

            impl #params _lora::Debug for #lora #args #clause {
                fn fmt(&self, _: &mut _lora::Formatter<'_>) -> _lora::FmtResult {
                    loop {}
                }
            }
        }
    });
    let impls = quote! {
        impl #params _lora::LoraModel for #ident #args #clause {
            type Lora = #lora #args;

            fn adapt(&self, _: &mut _lora::Builder<'_>) -> _lora::Result<#lora #args> {
                loop {}
            }
        }

        impl #params _lora::LoraModule for #lora #args #clause {
            type Base = #ident #args;

            fn to_base(&self) -> _lora::Result<#ident #args> {
                loop {}
            }

            fn visit(&self, _: &mut _lora::Cursor<'_>) {}

            fn visit_mut(&mut self, _: &mut _lora::CursorMut<'_>) {}
        }

        #clone_and_debug
    };
    (definition, impls)
}

fn definition(item: &Item<'_>) -> TokenStream {
    let (lora, vis, generics) = (&item.lora, item.vis, item.generics);
    let clause = &generics.where_clause;
    let head = quote!(#[allow(dead_code, missing_docs)] #vis);
    match &item.data {
        Data::Struct(fields) => {
            let body = self::fields(fields);
            match fields.style {
                Style::Named => quote!(#head struct #lora #generics #clause #body),
                _ => quote!(#head struct #lora #generics #body #clause;),
            }
        }
        Data::Enum(variants) => {
            let variants = variants.iter().map(|variant| {
                let ident = variant.ident;
                let body = self::fields(&variant.fields);
                quote!(#ident #body)
            });
            quote!(#head enum #lora #generics #clause { #(#variants),* })
        }
    }
}

fn fields(fields: &Fields<'_>) -> TokenStream {
    let definitions = fields.fields.iter().map(|field| {
        let (vis, member, ty) = (field.vis, &field.member, field.ty);
        match fields.style {
            Style::Named => quote!(#vis #member: #ty),
            _ => quote!(#vis #ty),
        }
    });
    match fields.style {
        Style::Named => quote!({ #(#definitions),* }),
        Style::Tuple => quote!((#(#definitions),*)),
        Style::Unit => TokenStream::new(),
    }
}
