//! Bodies that treat each field: straight on a struct, in the arms of a `match` on an enum.

use crate::ast::{Data, Field, Fields, Item, Style};
use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::{Ident, Member};

/// Some of a struct's or a variant's fields, and how to reach them.
pub struct Place<'a> {
    pub fields: &'a Fields<'a>,
    /// The variant, whose fields the `match` has bound to names.
    pub variant: Option<&'a Ident>,
}

/// The body of a method: `make` of a struct, or of each variant.
pub fn body(
    item: &Item<'_>,
    needed: impl Fn(&Field<'_>) -> bool,
    make: impl Fn(&Place<'_>) -> TokenStream,
) -> TokenStream {
    let variants = match &item.data {
        Data::Struct(fields) => {
            return make(&Place {
                fields,
                variant: None,
            });
        }
        Data::Enum(variants) => variants,
    };
    if variants.is_empty() {
        return quote!(match *self {});
    }
    let arms = variants.iter().map(|variant| {
        let place = Place {
            fields: &variant.fields,
            variant: Some(variant.ident),
        };
        let pattern = place.pattern(&needed);
        let body = make(&place);
        quote!(#pattern => { #body })
    });
    quote!(match self { #(#arms)* })
}

impl Place<'_> {
    fn pattern(&self, needed: impl Fn(&Field<'_>) -> bool) -> TokenStream {
        let variant = self.variant;
        let fields = &self.fields.fields;
        match self.fields.style {
            Style::Unit => quote!(Self::#variant),
            Style::Named => {
                let names = fields.iter().filter(|field| needed(field));
                let names: Vec<_> = names.map(|field| &field.member).collect();
                let rest = (names.len() < fields.len()).then(|| quote!(..));
                quote!(Self::#variant { #(#names,)* #rest })
            }
            Style::Tuple => {
                let names = fields.iter().map(|field| match needed(field) {
                    true => binding(field).to_token_stream(),
                    false => quote!(_),
                });
                quote!(Self::#variant(#(#names),*))
            }
        }
    }

    /// A reference to the field.
    pub fn get(&self, field: &Field<'_>) -> TokenStream {
        self.reach(field, &quote!(&))
    }

    /// A mutable reference to the field.
    pub fn get_mut(&self, field: &Field<'_>) -> TokenStream {
        self.reach(field, &quote!(&mut))
    }

    fn reach(&self, field: &Field<'_>, reference: &TokenStream) -> TokenStream {
        if self.variant.is_some() {
            return binding(field).to_token_stream();
        }
        let member = &field.member;
        quote!(#reference self.#member)
    }

    /// A value of the type, of this struct or variant, with these values for its fields.
    pub fn construct(&self, ty: &Ident, value: impl Fn(&Field<'_>) -> TokenStream) -> TokenStream {
        let variant = self.variant.map(|variant| quote!(::#variant));
        let fields = self.fields.fields.iter();
        let values = fields.clone().map(value);
        match self.fields.style {
            Style::Unit => quote!(#ty #variant),
            Style::Tuple => quote!(#ty #variant(#(#values),*)),
            Style::Named => {
                let names = fields.map(|field| &field.member);
                quote!(#ty #variant { #(#names: #values),* })
            }
        }
    }
}

/// The name that a pattern binds the field to.
fn binding(field: &Field<'_>) -> Ident {
    match &field.member {
        Member::Named(name) => name.clone(),
        Member::Unnamed(index) => format_ident!("f{}", index.index),
    }
}

/// A name of a method's own, which no field's name can shadow.
pub fn local(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}
