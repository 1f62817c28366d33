//! The check that no field under `skip` is a layer of candle's.

use crate::ast::{Field, Item};
use crate::params::mentions;
use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};

/// Only rustc knows what a type is, so the check is a constant of the type. Where a type depends on
/// parameters there is no such constant, and no check.
pub fn expand(item: &Item<'_>) -> TokenStream {
    let fields = item.fields();
    let fields =
        fields.filter(|field| field.kind.is_skipped() && !mentions(field.ty, item.generics));
    let checks: Vec<_> = fields.map(check).collect();
    match checks.is_empty() {
        true => TokenStream::new(),
        false => quote! {
            use _lora::NotAModel as _;
            #(#checks)*
        },
    }
}

const IS_LAYER: &str = "a layer under `skip` keeps candle's forward pass, which may cut the gradient: \
                        drop the `skip`, the layer stays frozen all the same";

fn check(field: &Field<'_>) -> TokenStream {
    let ty = field.ty;
    let cfgs = field.kept.iter().filter(|attr| attr.path().is_ident("cfg"));
    quote_spanned! {field.ends.0=>
        #(#cfgs)*
        const _: () = assert!(!_lora::Skipped::<#ty>::IS_LAYER, #IS_LAYER);
    }
}
