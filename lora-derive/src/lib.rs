//! Macros of [lora-candle](https://docs.rs/lora-candle): `#[derive(LoraModel)]` and
//! `#[lora::forward]`. Use them through that crate.
//!
//! The examples in the documentation need that crate, which needs this one: they run in `tests`.

mod ast;
mod attr;
mod bounds;
mod ctxt;
mod expand;
mod forward;
mod krate;
mod name;
mod params;
#[cfg(test)]
mod tests;
mod tuple;
mod valid;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

#[doc = include_str!("../docs/derive.md")]
#[proc_macro_derive(LoraModel, attributes(lora))]
pub fn derive_lora_model(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::derive(&input).into()
}

#[doc = include_str!("../docs/forward.md")]
#[proc_macro_attribute]
pub fn forward(args: TokenStream, input: TokenStream) -> TokenStream {
    forward::expand(args.into(), input.into()).into()
}
