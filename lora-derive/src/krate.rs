//! The path of the `lora` crate in the user's code.

use proc_macro_crate::{FoundCrate, crate_name};
use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote};
use syn::{Ident, Path};

/// The path that the user gave, or the name that the crate has in the user's `Cargo.toml`.
pub fn path(given: Option<&Path>) -> TokenStream {
    if let Some(path) = given {
        return path.to_token_stream();
    }
    match crate_name("lora") {
        Ok(FoundCrate::Name(name)) => {
            let name = Ident::new(&name, Span::call_site());
            quote!(::#name)
        }
        // In the crate itself, `extern crate self as lora` makes the name known. A crate that is
        // not found gets rustc's own error.
        Ok(FoundCrate::Itself) | Err(_) => quote!(::lora),
    }
}

/// The path in `crate = ".."`.
pub fn parse(path: &syn::LitStr) -> syn::Result<Path> {
    path.parse_with(Path::parse_mod_style).map_err(|_| {
        let message = format!("`{}` is not a path, such as \"crate::lora\"", path.value());
        syn::Error::new_spanned(path, message)
    })
}
