//! Macros of the [`lora`](https://docs.rs/lora) crate: `#[derive(LoraModel)]` and
//! `#[lora::forward]`. Use them through that crate.

mod ast;
mod attr;
mod bounds;
mod ctxt;
mod expand;
mod krate;
mod valid;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Derives `LoraModel` for a struct or enum of layers, and writes its LoRA type.
#[proc_macro_derive(LoraModel, attributes(lora))]
pub fn derive_lora_model(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::derive(&input).into()
}
