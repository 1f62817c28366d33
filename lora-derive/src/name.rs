//! The name of a type's LoRA type.

use quote::format_ident;
use syn::Ident;
use syn::ext::IdentExt;

/// `LoraNet` for `Net`. `LoraModel` is the trait, which most files import: the LoRA type of `Model` is
/// `LoraOfModel`.
pub fn lora(ident: &Ident) -> Ident {
    let base = ident.unraw();
    match base == "Model" {
        true => format_ident!("LoraOfModel", span = ident.span()),
        false => format_ident!("Lora{}", base, span = ident.span()),
    }
}
