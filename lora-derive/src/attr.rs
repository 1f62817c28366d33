//! Parses `#[lora(..)]` attributes. What goes together is checked in [`valid`](crate::valid).

use crate::ctxt::Ctxt;
use crate::krate;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens;
use syn::parse::{Parse, Parser};
use syn::punctuated::Punctuated;
use syn::{Attribute, Ident, Lit, LitInt, LitStr, Meta, Path, Token, WherePredicate};

/// A key of an attribute, for messages, with its value.
pub struct Given<T> {
    pub key: Ident,
    pub value: T,
}

/// The attributes of a struct or enum.
#[derive(Default)]
pub struct Container {
    pub krate: Option<Given<Path>>,
    pub name: Option<Given<Ident>>,
    pub derives: Option<Given<Vec<Path>>>,
    pub bound: Option<Given<Vec<WherePredicate>>>,
    pub plain: Option<Given<()>>,
}

/// The attributes of a field.
#[derive(Default)]
pub struct Field {
    pub rank: Option<Given<Option<LitInt>>>,
    pub alpha: Option<Given<Lit>>,
    pub dropout: Option<Given<Lit>>,
    pub trainable: Option<Given<()>>,
    pub skip: Option<Given<()>>,
    pub config: Option<Given<Option<Ident>>>,
    pub name: Option<Given<LitStr>>,
    pub flatten: Option<Given<()>>,
}

const CONTAINER: &[&str] = &["crate", "name", "derive", "bound", "plain"];
const FIELD: &[&str] = &[
    "rank",
    "alpha",
    "dropout",
    "trainable",
    "skip",
    "config",
    "name",
    "flatten",
];

impl Container {
    pub fn parse(cx: &Ctxt, attrs: &[Attribute]) -> Self {
        let mut all = Self::default();
        for entry in entries(cx, attrs) {
            match entry.key.to_string().as_str() {
                "crate" => set(cx, &mut all.krate, &entry, |e| krate::parse(&e.string()?)),
                "name" => set(cx, &mut all.name, &entry, |e| identifier(&e.string()?)),
                "derive" => set(cx, &mut all.derives, &entry, Entry::list),
                "bound" => set(cx, &mut all.bound, &entry, |e| predicates(&e.string()?)),
                "plain" => set(cx, &mut all.plain, &entry, Entry::flag),
                _ => entry.unknown(cx, CONTAINER, FIELD, "a field"),
            }
        }
        all
    }
}

impl Field {
    pub fn parse(cx: &Ctxt, attrs: &[Attribute]) -> Self {
        let mut all = Self::default();
        for entry in entries(cx, attrs) {
            match entry.key.to_string().as_str() {
                "rank" => set(cx, &mut all.rank, &entry, Entry::optional),
                "alpha" => set(cx, &mut all.alpha, &entry, Entry::number),
                "dropout" => set(cx, &mut all.dropout, &entry, Entry::number),
                "trainable" => set(cx, &mut all.trainable, &entry, Entry::flag),
                "skip" => set(cx, &mut all.skip, &entry, Entry::flag),
                "config" => set(cx, &mut all.config, &entry, Entry::optional),
                "name" => set(cx, &mut all.name, &entry, Entry::string),
                "flatten" => set(cx, &mut all.flatten, &entry, Entry::flag),
                _ => entry.unknown(cx, FIELD, CONTAINER, "the struct or enum"),
            }
        }
        all
    }
}

impl Field {
    /// A key to point at: one of those that exclude each other, if there is one.
    pub fn key(&self) -> Option<&Ident> {
        let mut keys = self.exclusive().into_iter();
        let name = self.name.as_ref().map(|given| &given.key);
        let flatten = self.flatten.as_ref().map(|given| &given.key);
        keys.find_map(|key| key).or(name).or(flatten)
    }

    /// The keys of which a field has one at most.
    pub fn exclusive(&self) -> [Option<&Ident>; 4] {
        [
            self.rank.as_ref().map(|given| &given.key),
            self.trainable.as_ref().map(|given| &given.key),
            self.skip.as_ref().map(|given| &given.key),
            self.config.as_ref().map(|given| &given.key),
        ]
    }
}

/// A variant has no attributes of its own.
pub fn refuse_on_variant(cx: &Ctxt, attrs: &[Attribute]) {
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("lora")) {
        cx.error(
            attr,
            "a variant takes no `#[lora(..)]`: put it on the variant's fields",
        );
    }
}

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

/// The entries of every `#[lora(..)]` among the attributes.
fn entries(cx: &Ctxt, attrs: &[Attribute]) -> Vec<Entry> {
    let mut all = Vec::new();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("lora")) {
        match &attr.meta {
            Meta::List(list) => all.extend(parse_entries(cx, list.tokens.clone())),
            other => cx.error(other, "expected `#[lora(..)]`"),
        }
    }
    all
}

/// Splits at the commas first, so that one bad entry leaves the others alone.
pub fn parse_entries(cx: &Ctxt, tokens: TokenStream) -> Vec<Entry> {
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
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts.filter_map(|part| Entry::parse(cx, part)).collect()
}

impl Entry {
    fn parse(cx: &Ctxt, tokens: Vec<TokenTree>) -> Option<Self> {
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
    fn flag(&self) -> syn::Result<()> {
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
    fn optional<T: Literal>(&self) -> syn::Result<Option<T>> {
        match &self.value {
            Value::None => Ok(None),
            _ => self.value().map(Some),
        }
    }

    fn value<T: Literal>(&self) -> syn::Result<T> {
        let value = self.assigned(T::EXAMPLE)?;
        T::read.parse2(value.clone()).map_err(|_| {
            let what = T::WHAT;
            syn::Error::new_spanned(value, format!("expected {what}, such as `{}`", T::EXAMPLE))
        })
    }

    pub fn string(&self) -> syn::Result<LitStr> {
        self.value()
    }

    fn number(&self) -> syn::Result<Lit> {
        self.value()
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

/// A kind of value that an attribute takes.
trait Literal: Sized {
    const WHAT: &str;
    const EXAMPLE: &str;
    fn read(input: syn::parse::ParseStream<'_>) -> syn::Result<Self>;
}

impl Literal for LitInt {
    const WHAT: &str = "an integer";
    const EXAMPLE: &str = "8";
    fn read(input: syn::parse::ParseStream<'_>) -> syn::Result<Self> {
        input.parse()
    }
}

impl Literal for Lit {
    const WHAT: &str = "a number";
    const EXAMPLE: &str = "0.5";
    fn read(input: syn::parse::ParseStream<'_>) -> syn::Result<Self> {
        // Takes a leading minus, which the checks then refuse by value.
        match input.parse()? {
            number @ (Lit::Int(_) | Lit::Float(_)) => Ok(number),
            other => Err(syn::Error::new_spanned(other, "not a number")),
        }
    }
}

impl Literal for LitStr {
    const WHAT: &str = "a string";
    const EXAMPLE: &str = "\"..\"";
    fn read(input: syn::parse::ParseStream<'_>) -> syn::Result<Self> {
        input.parse()
    }
}

impl Literal for Ident {
    const WHAT: &str = "a name for the alias";
    const EXAMPLE: &str = "LoraNetConfig";
    fn read(input: syn::parse::ParseStream<'_>) -> syn::Result<Self> {
        input.parse()
    }
}

/// The name of a type, from a string.
pub fn identifier(name: &LitStr) -> syn::Result<Ident> {
    name.parse().map_err(|_| {
        let message = format!("`{}` is not a name for a type", name.value());
        syn::Error::new_spanned(name, message)
    })
}

fn predicates(bound: &LitStr) -> syn::Result<Vec<WherePredicate>> {
    let parser = Punctuated::<WherePredicate, Token![,]>::parse_terminated;
    let predicates = bound.parse_with(parser).map_err(|error| {
        let message = format!("not where-clause predicates, such as \"T: LoraModel\": {error}");
        syn::Error::new_spanned(bound, message)
    })?;
    Ok(predicates.into_iter().collect())
}

/// The known key that is at most two edits away.
fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|known| (distance(key, known), *known));
    let (distance, near) = near.min_by_key(|(distance, _)| *distance)?;
    (distance <= 2 && distance < near.len()).then_some(near)
}

/// The Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The attributes that the LoRA type or field takes over.
pub fn kept(attrs: &[Attribute], names: &[&str]) -> Vec<Attribute> {
    let kept = attrs.iter().filter(|attr| {
        let path = attr.path().to_token_stream().to_string();
        names.contains(&path.as_str())
    });
    kept.cloned().collect()
}
