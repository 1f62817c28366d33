//! The impls of a type that is its own LoRA type.

use crate::ast::Item;
use proc_macro2::TokenStream;
use quote::quote;
use syn::parse_quote;

pub fn expand(item: &Item<'_>) -> TokenStream {
    let ident = item.ident;
    let mut generics = item.generics.clone();
    // Said here, a missing `Clone` is one error, not one for each use of it.
    let bound = parse_quote!(Self: _lora::Clone + _lora::Debug);
    generics.make_where_clause().predicates.push(bound);
    let (params, args, clause) = generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #params _lora::LoraModel for #ident #args #clause {
            type Lora = Self;

            fn adapt(&self, _: &mut _lora::Builder<'_>) -> _lora::Result<Self> {
                _lora::Ok(_lora::Clone::clone(self))
            }
        }

        #[automatically_derived]
        impl #params _lora::LoraModule for #ident #args #clause {
            type Base = Self;

            fn to_base(&self) -> _lora::Result<Self> {
                _lora::Ok(_lora::Clone::clone(self))
            }

            fn visit(&self, _: &mut _lora::Cursor<'_>) {}

            fn visit_mut(&mut self, _: &mut _lora::CursorMut<'_>) {}
        }
    }
}
