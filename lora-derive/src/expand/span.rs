//! Where generated tokens are in messages, and what their names mean.

use crate::ast::{Field, Kind};
use proc_macro2::{Group, Ident, Span, TokenStream, TokenTree};

/// Moves tokens to where the field's type is: rustc joins the spans of the first and the last one.
/// Errors that say the same at the same place are shown once, so one bad type is one error.
pub fn at(field: &Field<'_>, tokens: TokenStream) -> TokenStream {
    let (first, last) = field.ends;
    spread(tokens, first, last)
}

/// The same of a value that belongs to the field. Within a tuple each part has a place of its own.
pub fn value_at(field: &Field<'_>, tokens: TokenStream) -> TokenStream {
    match field.kind {
        Kind::Parts(_) => tokens,
        _ => at(field, tokens),
    }
}

/// Moves what stands around the values of parts, and leaves what is in brackets where it is.
pub fn around(field: &Field<'_>, tokens: TokenStream) -> TokenStream {
    let tokens = tokens.into_iter().map(|mut token| {
        token.set_span(token.span().located_at(field.ends.0));
        token
    });
    tokens.collect()
}

/// Moves the last token of each expression to one place, and all others to the first.
pub fn spread(tokens: TokenStream, first: Span, last: Span) -> TokenStream {
    let mut tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let ends: Vec<bool> = (0..tokens.len()).map(|i| is_end(&tokens, i)).collect();
    for (token, end) in tokens.iter_mut().zip(ends) {
        let span = token.span().located_at(if end { last } else { first });
        if let TokenTree::Group(group) = token {
            *group = Group::new(group.delimiter(), spread(group.stream(), first, last));
        }
        token.set_span(span);
    }
    tokens.into_iter().collect()
}

/// True for the last token of an expression of several, and for the name of a called function.
fn is_end(tokens: &[TokenTree], i: usize) -> bool {
    let is_punct = |i: usize, symbol| match tokens.get(i) {
        Some(TokenTree::Punct(punct)) => punct.as_char() == symbol,
        _ => false,
    };
    match tokens.get(i + 1) {
        None => i > 0 && !is_punct(i - 1, ','),
        Some(TokenTree::Group(_)) => i > 0 && is_punct(i - 1, ':'),
        Some(_) => false,
    }
}

/// Gives all tokens the origin of the derive: rustc does not join spans of several origins.
pub fn called(tokens: TokenStream) -> TokenStream {
    let tokens = tokens.into_iter().map(|mut token| {
        token.set_span(Span::call_site());
        token
    });
    tokens.collect()
}

/// Moves a name to where the type begins.
pub fn start(field: &Field<'_>, mut name: Ident) -> Ident {
    name.set_span(Span::call_site().located_at(field.ends.0));
    name
}

/// A name of a method's own, which no field's name can shadow.
pub fn local(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}
