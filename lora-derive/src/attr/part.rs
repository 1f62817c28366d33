//! `0(rank)`: the attributes of a part of a tuple.

use super::Field;
use crate::ctxt::Ctxt;
use proc_macro2::{Delimiter, Literal, TokenTree};
use syn::{Error, Result};

/// The attributes of one part.
#[derive(Clone)]
pub struct Part {
    /// As written, for messages.
    pub key: Literal,
    pub index: usize,
    pub attrs: Field,
}

impl Part {
    /// True if an entry begins as one for a part does.
    pub fn is_one(tokens: &[TokenTree]) -> bool {
        matches!(tokens, [TokenTree::Literal(key), ..] if index(key).is_some())
    }

    /// Reads the entry.
    pub fn parse(cx: &Ctxt, tokens: Vec<TokenTree>) -> Result<Self> {
        let mut tokens = tokens.into_iter();
        let (key, list) = (tokens.next(), tokens.next().filter(is_list));
        let (Some(TokenTree::Literal(key)), Some(TokenTree::Group(list))) = (&key, &list) else {
            return Err(Error::new_spanned(
                key,
                "a part needs its attributes: `0(..)`",
            ));
        };
        if let Some(extra) = tokens.next() {
            return Err(Error::new_spanned(extra, "expected `,`"));
        }
        let mut attrs = Field::default();
        attrs.read(cx, list.stream());
        Ok(Self {
            index: index(key).unwrap_or(usize::MAX),
            key: key.clone(),
            attrs,
        })
    }
}

fn is_list(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Parenthesis)
}

fn index(key: &Literal) -> Option<usize> {
    key.to_string().parse().ok()
}
