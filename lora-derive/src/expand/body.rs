//! Bodies that treat each field: straight on a struct, in the arms of a `match` on an enum.

use crate::ast::{Data, Field, Fields, Item, Style};
use crate::expand::span::{at, called, start};
use proc_macro2::{Delimiter, Group, Span, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::{Ident, Member};

/// A struct's or a variant's fields, and how to reach them.
pub struct Place<'a> {
    pub fields: &'a Fields<'a>,
    /// The variant, whose fields the `match` has bound to names.
    pub variant: Option<&'a Ident>,
    /// `&` or `&mut`.
    reference: &'a TokenStream,
}

/// The body of a method with `&self`: `make` of a struct, or of each variant.
pub fn body(
    item: &Item<'_>,
    needed: impl Fn(&Field<'_>) -> bool,
    make: impl Fn(&Place<'_>) -> TokenStream,
) -> TokenStream {
    places(item, &quote!(&), needed, make)
}

/// The body of a method with `&mut self`.
pub fn body_mut(
    item: &Item<'_>,
    needed: impl Fn(&Field<'_>) -> bool,
    make: impl Fn(&Place<'_>) -> TokenStream,
) -> TokenStream {
    places(item, &quote!(&mut), needed, make)
}

fn places(
    item: &Item<'_>,
    reference: &TokenStream,
    needed: impl Fn(&Field<'_>) -> bool,
    make: impl Fn(&Place<'_>) -> TokenStream,
) -> TokenStream {
    let variants = match &item.data {
        Data::Struct(fields) => {
            return make(&Place {
                fields,
                variant: None,
                reference,
            });
        }
        Data::Enum(variants) => variants,
    };
    let arms = variants.iter().map(|variant| {
        let place = Place {
            fields: &variant.fields,
            variant: Some(variant.ident),
            reference,
        };
        let pattern = place.pattern(&needed);
        let body = make(&place);
        quote!(#pattern => { #body })
    });
    match variants.is_empty() {
        true => quote!(match *self {}),
        false => quote!(match self { #(#arms)* }),
    }
}

impl Place<'_> {
    fn pattern(&self, needed: impl Fn(&Field<'_>) -> bool) -> TokenStream {
        let path = self.path(&Ident::new("Self", Span::call_site()));
        let fields = &self.fields.fields;
        match self.fields.style {
            Style::Unit => path,
            Style::Named => {
                let all = fields.iter();
                let names: Vec<_> = all.filter(|field| needed(field)).map(name).collect();
                let rest = (names.len() < fields.len()).then(|| quote!(..));
                quote!(#path { #(#names,)* #rest })
            }
            Style::Tuple => {
                let names = fields.iter().map(|field| match needed(field) {
                    true => name(field).to_token_stream(),
                    false => quote!(_),
                });
                let names = self.parens(quote!(#(#names),*));
                quote!(#path #names)
            }
        }
    }

    /// The path of the struct or variant.
    fn path(&self, ty: &Ident) -> TokenStream {
        let path = match self.variant {
            Some(variant) => quote!(#ty::#variant),
            None => quote!(#ty),
        };
        match self.suspect() {
            Some(field) => at(field, called(path)),
            None => path,
        }
    }

    /// What follows the path of a tuple.
    fn parens(&self, tokens: TokenStream) -> Group {
        let mut group = Group::new(Delimiter::Parenthesis, tokens);
        if let Some(field) = self.suspect() {
            group.set_span(Span::call_site().located_at(field.ends.1));
        }
        group
    }

    /// The constructor of a tuple is a function, with a signature for a bad type to be an error of:
    /// it goes where that type is.
    fn suspect(&self) -> Option<&Field<'_>> {
        let mut fields = self.fields.fields.iter();
        let is_tuple = self.fields.style == Style::Tuple;
        fields.find(|field| is_tuple && !field.is_known())
    }

    /// A reference to the field.
    pub fn get(&self, field: &Field<'_>) -> TokenStream {
        if self.variant.is_some() {
            return name(field).to_token_stream();
        }
        let member = &field.member;
        let reference = self.reference;
        at(field, called(quote!(#reference self.#member)))
    }

    /// A value of the type, of this struct or variant, with these values for its fields.
    pub fn construct(&self, ty: &Ident, value: impl Fn(&Field<'_>) -> TokenStream) -> TokenStream {
        let path = self.path(ty);
        let fields = self.fields.fields.iter();
        let values = fields.clone().map(|field| at(field, value(field)));
        match self.fields.style {
            Style::Unit => path,
            Style::Tuple => {
                let values = self.parens(quote!(#(#values),*));
                quote!(#path #values)
            }
            Style::Named => {
                let names = fields.map(|field| &field.member);
                quote!(#path { #(#names: #values),* })
            }
        }
    }
}

/// The name that a pattern binds the field to.
fn name(field: &Field<'_>) -> Ident {
    let name = match &field.member {
        Member::Named(name) => name.clone(),
        Member::Unnamed(index) => format_ident!("f{}", index.index),
    };
    start(field, name)
}
