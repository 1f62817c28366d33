//! The syntax: a list of keys, some with values.

use super::Given;
use super::spelling::nearest;
use super::value::Literal;
use crate::ctxt::Ctxt;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::parse::{Parse, Parser};
use syn::punctuated::Punctuated;
use syn::{Attribute, Ident, Meta, Token};

/// One `key`, `key = value` or `key(..)`.
pub struct Entry {
    pub key: Ident,
    value: Value,
}

enum Value {
    None,
    Assigned(TokenStream),
    List(TokenStream),
}

/// The tokens within every `#[lora(..)]` among the attributes.
pub fn lists(cx: &Ctxt, attrs: &[Attribute]) -> Vec<TokenStream> {
    let mut all = Vec::new();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("lora")) {
        match &attr.meta {
            Meta::List(list) => all.push(list.tokens.clone()),
            other => cx.error(other, "expected `#[lora(..)]`"),
        }
    }
    all
}

/// The entries of every `#[lora(..)]` among the attributes.
pub fn entries(cx: &Ctxt, attrs: &[Attribute]) -> Vec<Entry> {
    let lists = lists(cx, attrs).into_iter();
    lists.flat_map(|list| parse_entries(cx, list)).collect()
}

/// The entries of a list.
pub fn parse_entries(cx: &Ctxt, tokens: TokenStream) -> Vec<Entry> {
    let entries = split(tokens).into_iter();
    entries
        .filter_map(|entry| Entry::parse(cx, entry))
        .collect()
}

/// Splits at the commas first, so that one bad entry leaves the others alone.
pub fn split(tokens: TokenStream) -> Vec<Vec<TokenTree>> {
    let mut parts = vec![Vec::new()];
    for token in tokens {
        match &token {
            TokenTree::Punct(punct) if punct.as_char() == ',' => parts.push(Vec::new()),
            _ => parts
                .last_mut()
                .into_iter()
                .for_each(|part| part.push(token.clone())),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

impl Entry {
    /// Reads one entry.
    pub fn parse(cx: &Ctxt, tokens: Vec<TokenTree>) -> Option<Self> {
        let mut rest = tokens.into_iter();
        let key = match rest.next()? {
            TokenTree::Ident(key) => key,
            other => {
                cx.error(other, "expected a key, such as `rank`");
                return None;
            }
        };
        let value = match rest.next() {
            None => Value::None,
            Some(TokenTree::Punct(punct)) if punct.as_char() == '=' => {
                let value: TokenStream = rest.by_ref().collect();
                if value.is_empty() {
                    cx.error(&key, format!("`{key} =` has no value"));
                    return None;
                }
                Value::Assigned(value)
            }
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis => {
                Value::List(group.stream())
            }
            Some(other) => {
                cx.error(other, format!("expected `,` or `=` after `{key}`"));
                return None;
            }
        };
        match rest.next() {
            None => Some(Self { key, value }),
            Some(extra) => {
                cx.error(extra, "expected `,`");
                None
            }
        }
    }

    /// A key alone.
    pub fn flag(&self) -> syn::Result<()> {
        match &self.value {
            Value::None => Ok(()),
            Value::Assigned(value) | Value::List(value) => Err(syn::Error::new_spanned(
                value,
                format!("`{}` takes no value", self.key),
            )),
        }
    }

    fn assigned(&self, example: &str) -> syn::Result<&TokenStream> {
        match &self.value {
            Value::Assigned(value) => Ok(value),
            _ => {
                let key = &self.key;
                let message = format!("`{key}` needs a value: `{key} = {example}`");
                Err(syn::Error::new_spanned(key, message))
            }
        }
    }

    /// `key` or `key = value`.
    pub fn optional<T: Literal>(&self) -> syn::Result<Option<T>> {
        match &self.value {
            Value::None => Ok(None),
            _ => self.value().map(Some),
        }
    }

    /// `key = value`.
    pub fn value<T: Literal>(&self) -> syn::Result<T> {
        let value = self.assigned(T::EXAMPLE)?;
        T::read.parse2(value.clone()).map_err(|_| {
            let what = T::WHAT;
            syn::Error::new_spanned(value, format!("expected {what}, such as `{}`", T::EXAMPLE))
        })
    }

    /// `key(A, B)`.
    pub fn list<T: Parse>(&self) -> syn::Result<Vec<T>> {
        let key = &self.key;
        let Value::List(tokens) = &self.value else {
            let message = format!("`{key}` needs a list: `{key}(..)`");
            return Err(syn::Error::new_spanned(key, message));
        };
        let list = Punctuated::<T, Token![,]>::parse_terminated.parse2(tokens.clone())?;
        Ok(list.into_iter().collect())
    }

    /// `key` or `key(A, B)`.
    pub fn optional_list<T: Parse>(&self) -> syn::Result<Vec<T>> {
        match &self.value {
            Value::None => Ok(Vec::new()),
            _ => self.list(),
        }
    }

    /// Says where the key belongs, or what it may have been meant to be.
    pub fn unknown(&self, cx: &Ctxt, known: &[&str], elsewhere: &[&str], place: &str) {
        let key = self.key.to_string();
        let help = if elsewhere.contains(&key.as_str()) {
            format!("it goes on {place}")
        } else if let Some(near) = nearest(&key, known) {
            format!("did you mean `{near}`?")
        } else {
            let known: Vec<_> = known.iter().map(|key| format!("`{key}`")).collect();
            format!("known are {}", known.join(", "))
        };
        cx.error(&self.key, format!("unknown key `{key}`: {help}"));
    }
}

/// Stores the entry's value; a key given twice is an error.
pub fn set<T>(
    cx: &Ctxt,
    slot: &mut Option<Given<T>>,
    entry: &Entry,
    parse: impl FnOnce(&Entry) -> syn::Result<T>,
) {
    let key = &entry.key;
    if slot.is_some() {
        cx.error(key, format!("`{key}` is given twice"));
    } else if let Some(value) = cx.ok(parse(entry)) {
        let key = key.clone();
        *slot = Some(Given { key, value });
    }
}
