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

/// The name under which the derive leaves a type's LoRA type, for copies of impl blocks that mention
/// the type.
pub fn left(ident: &Ident) -> Ident {
    format_ident!("__lora_of_{}", ident.unraw(), span = ident.span())
}
