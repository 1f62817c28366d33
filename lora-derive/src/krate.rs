//! The path of the library in the user's code.

use proc_macro_crate::{FoundCrate, crate_name};
use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote};
use syn::{Ident, Path};

const PACKAGE: &str = "lora-candle";

/// The path that the user gave, or the name that the library has by the user's `Cargo.toml`.
pub fn path(given: Option<&Path>) -> TokenStream {
    if let Some(path) = given {
        return path.to_token_stream();
    }
    match crate_name(PACKAGE) {
        Ok(FoundCrate::Name(name)) if name != PACKAGE.replace('-', "_") => {
            let name = Ident::new(&name, Span::call_site());
            quote!(::#name)
        }
        // A dependency that the user does not rename has the name of the library, not that of its
        // package. In the library itself `extern crate self as lora` makes the name known. A
        // package that is not found gets rustc's own error.
        _ => quote!(::lora),
    }
}

/// The path in `crate = ".."`.
pub fn parse(path: &syn::LitStr) -> syn::Result<Path> {
    path.parse_with(Path::parse_mod_style).map_err(|_| {
        let message = format!("`{}` is not a path, such as \"crate::lora\"", path.value());
        syn::Error::new_spanned(path, message)
    })
}
