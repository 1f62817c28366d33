//! Macros of the [`lora`](https://docs.rs/lora) crate: `#[derive(LoraModel)]` and
//! `#[lora::forward]`. Use them through that crate.

mod ast;
mod attr;
mod bounds;
mod ctxt;
mod expand;
mod forward;
mod krate;
mod rename;
mod valid;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Derives `LoraModel` for a struct or enum of layers, and writes its LoRA type.
#[proc_macro_derive(LoraModel, attributes(lora))]
pub fn derive_lora_model(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::derive(&input).into()
}

/// Gives the LoRA type the methods of an impl block: emits the block, and a copy of it.
#[proc_macro_attribute]
pub fn forward(args: TokenStream, input: TokenStream) -> TokenStream {
    forward::expand(args.into(), input.into()).into()
}
