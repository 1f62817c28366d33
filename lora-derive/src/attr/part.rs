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
        let (key, list) = (tokens.next(), tokens.next());
        let (Some(TokenTree::Literal(key)), None) = (&key, tokens.next()) else {
            return Err(Error::new_spanned(
                key,
                "expected `,` after a part's `(..)`",
            ));
        };
        match list {
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis => {
                let mut attrs = Field::default();
                attrs.read(cx, group.stream());
                Ok(Self {
                    index: index(key).unwrap_or(usize::MAX),
                    key: key.clone(),
                    attrs,
                })
            }
            _ => {
                let message = format!("`{key}` needs the part's attributes: `{key}(..)`");
                Err(Error::new_spanned(key, message))
            }
        }
    }
}

fn index(key: &Literal) -> Option<usize> {
    key.to_string().parse().ok()
}
