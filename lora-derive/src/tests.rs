//! The expansion of a representative model, formatted as `cargo expand` prints it.

use crate::{expand, forward};
use quote::{ToTokens, quote};
use std::path::PathBuf;
use syn::{Attribute, DeriveInput, Item, Path, Token, parse_quote, parse2};

/// To take the present expansion as the right one, run this test with `EXPAND=overwrite`.
#[test]
fn snapshot() {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/expand"));
    let model = std::fs::read_to_string(dir.join("model.rs")).unwrap();
    let mut file = syn::parse_file(&model).unwrap();
    file.items = file.items.into_iter().flat_map(expanded).collect();
    let actual = prettyplease::unparse(&file);
    let snapshot = dir.join("model.expanded.rs");
    if std::env::var_os("EXPAND").is_some_and(|value| value == "overwrite") {
        std::fs::write(&snapshot, &actual).unwrap();
    }
    let expected = std::fs::read_to_string(&snapshot).unwrap();
    assert_eq!(
        actual, expected,
        "the expansion is not that in {snapshot:?}"
    );
}

/// An item, and what the macros make of it.
fn expanded(item: Item) -> Vec<Item> {
    let tokens = match item {
        Item::Struct(mut item) => {
            let tokens = item.to_token_stream();
            let derived = derived(&mut item.attrs, tokens);
            quote!(#item #derived)
        }
        Item::Enum(mut item) => {
            let tokens = item.to_token_stream();
            let derived = derived(&mut item.attrs, tokens);
            quote!(#item #derived)
        }
        Item::Impl(mut item) => {
            item.attrs.clear();
            forward::expand(quote!(), quote!(#item))
        }
        other => other.to_token_stream(),
    };
    let file: syn::File = parse2(tokens).unwrap();
    file.items
}

/// The expansion; takes the derive off the item's own attributes.
fn derived(attrs: &mut Vec<Attribute>, item: proc_macro2::TokenStream) -> proc_macro2::TokenStream {
    for attr in attrs
        .iter_mut()
        .filter(|attr| attr.path().is_ident("derive"))
    {
        let list = syn::punctuated::Punctuated::<Path, Token![,]>::parse_terminated;
        let others = attr.parse_args_with(list).unwrap().into_iter();
        let others = others.filter(|path| !path.is_ident("LoraModel"));
        *attr = parse_quote!(#[derive(#(#others),*)]);
    }
    attrs.retain(|attr| *attr != parse_quote!(#[derive()]));
    let input: DeriveInput = parse2(item).unwrap();
    expand::derive(&input)
}

/// The tokens of a macro call can be anything: keywords, lifetimes, halves of an expression. Neither
/// macro may panic on them.
#[test]
fn macro_calls_of_any_tokens() {
    const TOKENS: &[&str] = &[
        "as",
        "fn",
        "impl",
        "T",
        "Net",
        "Self",
        "self",
        "'a",
        "::",
        "=>",
        "#",
        "$",
        "?",
        ",",
        ";",
        "&",
        "rope",
        "candle_nn::ops::rms_norm",
        "(rope)",
        "xs.scatter(ids)",
        "Tensor::max_pool2d(xs)",
        "Tensor::scatter()",
        "[T]",
        "{ T::new }",
        "1.5",
        "\"text\"",
        "r#type",
        "..",
        "|x|",
        "=",
        "let",
        "move",
        "<",
        ">",
    ];
    let mut state = 1u64;
    let mut below = |limit: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % limit
    };
    for _ in 0..2000 {
        let tokens: Vec<&str> = (0..1 + below(8))
            .map(|_| TOKENS[below(TOKENS.len())])
            .collect();
        let tokens: proc_macro2::TokenStream = tokens.join(" ").parse().unwrap();
        let block = quote! {
            impl<T: Module> Net<T> {
                fn forward(&self, xs: &Tensor) -> Result<Tensor> {
                    call!(#tokens);
                    let list = vec![#tokens];
                    Ok(list)
                }
            }
        };
        let expanded = forward::expand(quote!(), block).to_string();
        assert!(expanded.contains("LoraNet"), "{expanded}");
    }
}
