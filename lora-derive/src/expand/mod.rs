//! Writes the LoRA type of an item, and the impls that go with it.

mod base;
mod body;
pub mod linear;
mod lora;
mod plain;
mod skipped;
mod span;
mod stub;
mod ty;

use crate::ast::Item;
use crate::bounds::Bounds;
use crate::ctxt::Ctxt;
use crate::{krate, valid};
use proc_macro2::TokenStream;
use quote::quote;
use syn::DeriveInput;

/// The whole expansion of `#[derive(LoraModel)]`.
pub fn derive(input: &DeriveInput) -> TokenStream {
    let cx = Ctxt::default();
    let Some(item) = Item::new(&cx, input) else {
        return cx.into_errors().unwrap_or_default();
    };
    valid::item(&cx, &item);
    let errors = cx.into_errors();
    let krate = krate::path(item.attrs.krate.as_ref().map(|given| &given.value));
    let bounds = Bounds::new(&item, &krate);
    let parts = linear::Parts::of(&item);
    let (definition, impls) = match (&errors, parts) {
        // With errors the impls are empty, so that code which uses them has no errors of its own.
        (Some(_), _) => stub::expand(&item),
        (None, Some(parts)) => (
            linear::definition(&item, &krate),
            linear::expand(&item, &parts),
        ),
        (None, None) if item.plain => (TokenStream::new(), plain::expand(&item)),
        (None, None) => {
            let base = base::expand(&item, &bounds);
            let lora = lora::expand(&item, &bounds);
            let skipped = skipped::expand(&item);
            (
                ty::expand(&item, &bounds, &krate),
                quote!(#base #lora #skipped),
            )
        }
    };
    quote! {
        #errors
        #definition
        const _: () = {
            use #krate::__private as _lora;
            #impls
        };
    }
}
