//! Checks what `#[lora(..)]` attributes say together.

use crate::ast::{Field, Fields, Item, Kind};
use crate::attr::{self, key};
use crate::ctxt::Ctxt;
use crate::params::mentions;
use syn::Ident;

/// Checks the item and its fields.
pub fn item(cx: &Ctxt, item: &Item<'_>) {
    if let Some(name) = &item.attrs.name
        && name.value == *item.ident
    {
        cx.error(
            &name.value,
            "the LoRA type needs a name of its own: this is the base type's",
        );
    }
    if let Some(plain) = key(&item.attrs.plain) {
        whole_of_plain(cx, item, plain);
    }
    for body in item.bodies() {
        configs(cx, body);
    }
    for field in item.fields() {
        exclusive(cx, &field.attrs);
        parts(cx, &field.attrs);
        path(cx, &field.attrs);
        adapter(cx, &field.attrs);
        alias(cx, item, field);
    }
}

/// A plain type has no LoRA type that attributes could shape.
fn whole_of_plain(cx: &Ctxt, item: &Item<'_>, plain: &Ident) {
    let attrs = &item.attrs;
    let keys = [key(&attrs.name), key(&attrs.derives), key(&attrs.bound)];
    for key in keys.into_iter().flatten() {
        cx.error(
            key,
            format!("`{key}` does not go with `{plain}`: a plain type is its own LoRA type"),
        );
    }
    for key in item.fields().filter_map(|field| field.attrs.key()) {
        cx.error(
            key,
            format!("`{key}` does not go with `{plain}`: the type is kept as it is"),
        );
    }
}

/// A struct or variant has one configuration at most.
fn configs(cx: &Ctxt, body: &Fields<'_>) {
    let is_config = |field: &&Field<'_>| matches!(field.kind, Kind::Config { .. });
    for second in body.fields.iter().filter(is_config).skip(1) {
        cx.error(second.attrs.key(), "a second `config`: a model has one");
    }
}

/// A field has one of the keys that exclude each other.
fn exclusive(cx: &Ctxt, attrs: &attr::Field) {
    let mut keys = attrs.exclusive().into_iter().flatten();
    let Some(first) = keys.next() else {
        return;
    };
    for key in keys {
        cx.error(
            key,
            format!("`{key}` does not go with `{first}`: a field has one of them"),
        );
    }
}

/// Where the parts of a tuple have attributes, those say what each part is.
fn parts(cx: &Ctxt, attrs: &attr::Field) {
    let Some(part) = attrs.parts.first() else {
        return;
    };
    for key in attrs.exclusive().into_iter().flatten() {
        let part = &part.key;
        cx.error(
            key,
            format!("`{key}` does not go with `{part}(..)`: give `{key}` to the parts"),
        );
    }
}

/// `name`, `flatten` and `routed` are about a field's parameters, so the field must have some.
fn path(cx: &Ctxt, attrs: &attr::Field) {
    let (name, flatten) = (key(&attrs.name), key(&attrs.flatten));
    if let Some(empty) = key(&attrs.skip).or(key(&attrs.config)) {
        for key in [name, flatten, key(&attrs.routed)].into_iter().flatten() {
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
}

/// `alpha` and `dropout` go with `rank`.
fn adapter(cx: &Ctxt, attrs: &attr::Field) {
    if attrs.rank.is_some() {
        return;
    }
    for key in [key(&attrs.alpha), key(&attrs.dropout)]
        .into_iter()
        .flatten()
    {
        cx.error(
            key,
            format!("`{key}` is of an adapter: it goes with `rank`"),
        );
    }
}

/// An alias has no parameters.
fn alias(cx: &Ctxt, item: &Item<'_>, field: &Field<'_>) {
    if let Kind::Config { alias: Some(alias) } = &field.kind
        && mentions(field.ty, item.generics)
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
