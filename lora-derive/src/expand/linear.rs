//! The impls of a struct that is a linear layer, which the library computes.

use crate::ast::{Data, Field, Item};
use crate::expand::span::{at, local};
use crate::name;
use proc_macro2::TokenStream;
use quote::quote;
use syn::{GenericParam, Generics, Member, parse_quote};

/// The struct's two fields.
pub struct Parts<'a> {
    pub weight: &'a Field<'a>,
    pub bias: Option<&'a Field<'a>>,
}

impl<'a> Parts<'a> {
    /// The parts of an item with a `linear` that is valid.
    pub fn of(item: &'a Item<'_>) -> Option<Self> {
        let given = &item.attrs.linear.as_ref()?.value;
        Some(Self {
            weight: field(item, given.weight.as_ref(), "weight")?,
            bias: field(item, given.bias.as_ref(), "bias"),
        })
    }

    /// True for one of the two fields.
    pub fn have(&self, field: &Field<'_>) -> bool {
        let is_bias = |bias: &Field<'_>| bias.member == field.member;
        self.weight.member == field.member || self.bias.is_some_and(is_bias)
    }
}

/// The field of a struct that the attribute names, or that has the name by itself.
pub fn field<'a>(
    item: &'a Item<'_>,
    given: Option<&Member>,
    name: &'static str,
) -> Option<&'a Field<'a>> {
    let Data::Struct(fields) = &item.data else {
        return None;
    };
    let mut fields = fields.fields.iter();
    fields.find(|field| match (given, &field.member) {
        (Some(given), member) => given == member,
        (None, Member::Named(member)) => member == name,
        (None, Member::Unnamed(_)) => false,
    })
}

/// The name by which copies of impl blocks speak of the LoRA type. There is no `LoraLayer` for a struct
/// `Layer`: a copy of an impl block of its own would have nothing to say.
pub fn definition(item: &Item<'_>, krate: &TokenStream) -> TokenStream {
    let (ident, vis) = (item.ident, item.vis);
    let left = name::left(ident);
    let params = unbounded(item.generics);
    let (_, args, _) = item.generics.split_for_impl();
    let cfgs = item.kept.iter().filter(|attr| attr.path().is_ident("cfg"));
    quote! {
        #(#cfgs)*
        #[doc(hidden)]
        #[allow(dead_code, non_camel_case_types)]
        #vis type #left #params = #krate::layers::LoraOwnLinear<#ident #args>;
    }
}

/// The parameters alone, as an alias has them.
fn unbounded(generics: &Generics) -> Generics {
    let mut generics = generics.clone();
    generics.where_clause = None;
    for param in &mut generics.params {
        if let GenericParam::Type(param) = param {
            param.bounds.clear();
            param.colon_token = None;
        }
    }
    generics
}

pub fn expand(item: &Item<'_>, parts: &Parts<'_>) -> TokenStream {
    let ident = item.ident;
    let mut generics = item.generics.clone();
    // Said here, a missing `Clone` is one error, not one for each use of it.
    let clone = parse_quote!(Self: _lora::Clone);
    generics.make_where_clause().predicates.push(clone);
    let (params, args, clause) = generics.split_for_impl();
    let cx = local("cx");
    let tensors = tensors(parts, quote!(&), quote!(weight), quote!(bias));
    let tensors_mut = self::tensors(parts, quote!(&mut), quote!(weight_mut), quote!(bias_mut));
    quote! {
        #[automatically_derived]
        impl #params _lora::LoraModel for #ident #args #clause {
            type Lora = _lora::LoraOwnLinear<Self>;

            fn adapt(&self, #cx: &mut _lora::Builder<'_>) -> _lora::Result<Self::Lora> {
                _lora::own_linear(self, #cx)
            }
        }

        impl #params _lora::LoraLayer for #ident #args #clause {}

        #[automatically_derived]
        impl #params _lora::OwnLinear for #ident #args #clause {
            fn tensors(&self) -> (&_lora::Tensor, _lora::Option<&_lora::Tensor>) {
                #tensors
            }

            fn tensors_mut(&mut self) -> (&mut _lora::Tensor, _lora::Option<&mut _lora::Tensor>) {
                #tensors_mut
            }
        }
    }
}

fn tensors(
    parts: &Parts<'_>,
    reference: TokenStream,
    weight: TokenStream,
    bias: TokenStream,
) -> TokenStream {
    let read = |field: &Field<'_>, of: TokenStream| {
        let member = &field.member;
        at(field, quote!(#of(#reference self.#member)))
    };
    let weight = read(parts.weight, quote!(_lora::WeightField::#weight));
    let bias = match parts.bias {
        Some(field) => read(field, quote!(_lora::BiasField::#bias)),
        None => quote!(_lora::None),
    };
    quote!((#weight, #bias))
}
