//! Bodies that treat each field: straight on a struct, in the arms of a `match` on an enum.

use crate::ast::{Data, Field, Fields, Item, Style};
use crate::expand::span::{at, called, start, value_at};
use proc_macro2::{Delimiter, Group, Span, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::{Ident, Member};

/// A struct's or a variant's fields, and how to reach them.
pub struct Place<'a> {
    pub fields: &'a Fields<'a>,
    /// The variant, whose fields the `match` has bound to names.
    pub variant: Option<&'a Ident>,
    /// `&` or `&mut`; nothing where the fields are bound to names.
    reference: Option<&'a TokenStream>,
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
                reference: Some(reference),
            });
        }
        Data::Enum(variants) => variants,
    };
    let arms = variants.iter().map(|variant| {
        let place = Place {
            fields: &variant.fields,
            variant: Some(variant.ident),
            reference: None,
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

impl<'a> Place<'a> {
    /// The parts of a tuple, which a pattern has bound to names.
    pub fn parts(fields: &'a Fields<'a>) -> Self {
        Self {
            fields,
            variant: None,
            reference: None,
        }
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
                let names = self.tuple(needed);
                quote!(#path #names)
            }
        }
    }

    /// The pattern of a tuple.
    pub fn tuple(&self, needed: impl Fn(&Field<'_>) -> bool) -> Group {
        let fields = self.fields.fields.iter();
        let names = fields.map(|field| match needed(field) {
            true => name(field).to_token_stream(),
            false => quote!(_),
        });
        self.parens(names)
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
    fn parens(&self, values: impl Iterator<Item = TokenStream>) -> Group {
        let is_type = self.reference.is_some() || self.variant.is_some();
        let values = match is_type {
            true => quote!(#(#values),*),
            // A tuple of one part has a comma.
            false => quote!(#(#values,)*),
        };
        let mut group = Group::new(Delimiter::Parenthesis, values);
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

    /// A reference to the field, which [`at`] moves with all around it.
    pub fn get(&self, field: &Field<'_>) -> TokenStream {
        let Some(reference) = self.reference else {
            return name(field).to_token_stream();
        };
        let member = called(field.member.to_token_stream());
        quote!(#reference self.#member)
    }

    /// A value of the type, of this struct or variant, with these values for its fields.
    pub fn construct(&self, ty: &Ident, value: impl Fn(&Field<'_>) -> TokenStream) -> TokenStream {
        let path = self.path(ty);
        match self.fields.style {
            Style::Unit => path,
            Style::Tuple => {
                let values = self.values(value);
                quote!(#path #values)
            }
            Style::Named => {
                let fields = self.fields.fields.iter();
                let names = fields.clone().map(|field| &field.member);
                let values = fields.map(|field| value_at(field, value(field)));
                quote!(#path { #(#names: #values),* })
            }
        }
    }

    /// A tuple with these values.
    pub fn values(&self, value: impl Fn(&Field<'_>) -> TokenStream) -> Group {
        let fields = self.fields.fields.iter();
        self.parens(fields.map(|field| value_at(field, value(field))))
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
