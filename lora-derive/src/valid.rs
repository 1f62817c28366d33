//! Checks what `#[lora(..)]` attributes say together, and turns them into a [`Kind`].

use crate::ast::{Field, Item, Kind};
use crate::attr::{self, Given};
use crate::ctxt::Ctxt;
use syn::{DeriveInput, Ident, Lit, LitInt, LitStr};

/// What the field's attributes make of it.
pub fn kind(cx: &Ctxt, attrs: &attr::Field) -> Kind {
    let first = exclusive(cx, attrs);
    path(cx, attrs);
    let rank = attrs.rank.as_ref().and_then(|given| given.value.as_ref());
    let rank = rank.and_then(|lit| self::rank(cx, lit));
    let alpha = attrs.alpha.as_ref().and_then(|given| alpha(cx, given));
    let dropout = attrs.dropout.as_ref().and_then(|given| dropout(cx, given));
    for key in [&attrs.alpha, &attrs.dropout].into_iter().flatten() {
        if attrs.rank.is_none() {
            let key = &key.key;
            cx.error(
                key,
                format!("`{key}` is of an adapter: it goes with `rank`"),
            );
        }
    }
    match first.map(Ident::to_string).as_deref() {
        Some("rank") => Kind::Rank {
            rank,
            alpha,
            dropout,
        },
        Some("trainable") => Kind::Trainable,
        Some("skip") => Kind::Skip,
        Some("config") => Kind::Config {
            alias: attrs.config.as_ref().and_then(|given| given.value.clone()),
        },
        _ => Kind::Model,
    }
}

/// The one of the keys that exclude each other, and errors at the others.
fn exclusive<'a>(cx: &Ctxt, attrs: &'a attr::Field) -> Option<&'a Ident> {
    let mut keys = attrs.exclusive().into_iter().flatten();
    let first = keys.next()?;
    for key in keys {
        cx.error(
            key,
            format!("`{key}` does not go with `{first}`: a field has one of them"),
        );
    }
    Some(first)
}

/// `name` and `flatten` say where a field's parameters are, so the field must have some.
fn path(cx: &Ctxt, attrs: &attr::Field) {
    let skip = attrs.skip.as_ref().map(|given| &given.key);
    let config = attrs.config.as_ref().map(|given| &given.key);
    let empty = skip.or(config);
    let name = attrs.name.as_ref().map(|given| &given.key);
    let flatten = attrs.flatten.as_ref().map(|given| &given.key);
    for key in [name, flatten].into_iter().flatten() {
        if let Some(empty) = empty {
            cx.error(
                key,
                format!("`{key}` has no use here: a `{empty}` field has no parameters"),
            );
        }
    }
    if let (Some(_), Some(flatten)) = (name, flatten) {
        cx.error(
            flatten,
            "`flatten` does not go with `name`: a flattened field adds no name",
        );
    }
    if let Some(Given { value, .. }) = &attrs.name {
        segment(cx, value);
    }
}

/// A name in a path: `fc1`, or several with dots between.
fn segment(cx: &Ctxt, name: &LitStr) {
    let value = name.value();
    if value.is_empty() {
        cx.error(
            name,
            "the name is empty: to leave the field out of the path, use `flatten`",
        );
    } else if value.split('.').any(str::is_empty) {
        cx.error(
            name,
            "the name has an empty part: write it as in \"mlp.fc1\"",
        );
    }
}

fn rank(cx: &Ctxt, lit: &LitInt) -> Option<usize> {
    if !matches!(lit.suffix(), "" | "usize") {
        cx.error(
            lit,
            format!("the rank is a `usize`, not `{}`", lit.suffix()),
        );
        return None;
    }
    match lit.base10_parse::<usize>() {
        Ok(0) => cx.error(lit, "the rank is 0: it must be at least 1"),
        Ok(rank) => return Some(rank),
        Err(_) if lit.base10_digits().starts_with('-') => {
            cx.error(lit, "the rank is negative: it must be at least 1");
        }
        Err(_) => cx.error(lit, "the rank is too large"),
    }
    None
}

fn alpha(cx: &Ctxt, given: &Given<Lit>) -> Option<f64> {
    let alpha = number(cx, given)?;
    if alpha > 0.0 && alpha.is_finite() {
        return Some(alpha);
    }
    cx.error(&given.value, "alpha must be above 0 and finite");
    None
}

fn dropout(cx: &Ctxt, given: &Given<Lit>) -> Option<f64> {
    let dropout = number(cx, given)?;
    if (0.0..1.0).contains(&dropout) {
        return Some(dropout);
    }
    cx.error(
        &given.value,
        "dropout must be at least 0 and below 1: it is the share of inputs that are dropped",
    );
    None
}

fn number(cx: &Ctxt, given: &Given<Lit>) -> Option<f64> {
    let (digits, suffix) = match &given.value {
        Lit::Float(lit) => (lit.base10_digits(), lit.suffix()),
        Lit::Int(lit) => (lit.base10_digits(), lit.suffix()),
        _ => return None,
    };
    if !matches!(suffix, "" | "f64") {
        let message = format!("`{}` is an `f64`, not `{suffix}`", given.key);
        cx.error(&given.value, message);
        return None;
    }
    match digits.parse() {
        Ok(number) => Some(number),
        Err(_) => {
            cx.error(&given.value, "not a number");
            None
        }
    }
}

/// A struct or variant has one configuration at most.
pub fn configs(cx: &Ctxt, fields: &[Field<'_>]) {
    let is_config = |field: &&Field<'_>| matches!(field.kind, Kind::Config { .. });
    for second in fields.iter().filter(is_config).skip(1) {
        cx.error(&second.key, "a second `config`: a model has one");
    }
}

/// Checks what concerns the whole item.
pub fn item(cx: &Ctxt, item: &Item<'_>, input: &DeriveInput) {
    if let Some(name) = &item.attrs.name
        && name.value == input.ident
    {
        cx.error(
            &name.value,
            "the LoRA type needs a name of its own: this is the base type's",
        );
    }
    if let Some(plain) = &item.attrs.plain {
        whole_of_plain(cx, item, &plain.key);
    }
    for field in item.fields() {
        if let Kind::Config { alias: Some(alias) } = &field.kind
            && crate::bounds::mentions(field.ty, item.generics)
        {
            cx.error(
                alias,
                format!(
                    "the configuration has parameters of `{}`, which an alias here cannot name: \
                     write `type {alias}<..> = WithLora<..>` yourself",
                    item.ident
                ),
            );
        }
    }
}

/// A plain type has no LoRA type that attributes could shape.
fn whole_of_plain(cx: &Ctxt, item: &Item<'_>, plain: &Ident) {
    let attrs = &item.attrs;
    let keys = [
        attrs.name.as_ref().map(|given| &given.key),
        attrs.derives.as_ref().map(|given| &given.key),
        attrs.bound.as_ref().map(|given| &given.key),
    ];
    for key in keys.into_iter().flatten() {
        cx.error(
            key,
            format!("`{key}` does not go with `{plain}`: a plain type is its own LoRA type"),
        );
    }
    for key in item.fields().filter_map(|field| field.key.as_ref()) {
        cx.error(
            key,
            format!("`{key}` does not go with `{plain}`: the type is kept as it is"),
        );
    }
}
