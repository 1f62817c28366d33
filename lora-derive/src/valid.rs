//! Checks what `#[lora(..)]` attributes say together.

use crate::ast::{Data, Field, Fields, Item, Kind};
use crate::attr::{self, Given, Linear, key};
use crate::ctxt::Ctxt;
use crate::expand::linear::{Parts, field};
use crate::params::mentions;
use quote::ToTokens;
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
    if let Some(given) = &item.attrs.linear {
        linear(cx, item, given);
    } else if let Some(plain) = key(&item.attrs.plain) {
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
    for key in shapes(item) {
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

/// The keys that shape a LoRA type.
fn shapes<'a>(item: &'a Item<'_>) -> impl Iterator<Item = &'a Ident> {
    let attrs = &item.attrs;
    let keys = [key(&attrs.name), key(&attrs.derives), key(&attrs.bound)];
    keys.into_iter().flatten()
}

/// A linear layer is a struct with a field for its weight. The library has its LoRA type.
fn linear(cx: &Ctxt, item: &Item<'_>, given: &Given<Linear>) {
    let linear = &given.key;
    for key in shapes(item).chain(key(&item.attrs.plain)) {
        cx.error(
            key,
            format!("`{key}` does not go with `{linear}`: the library has the LoRA type"),
        );
    }
    if matches!(item.data, Data::Enum(_)) {
        cx.error(
            linear,
            "`linear` is for a struct, where one field is the weight: an enum of such structs derives \
             without it",
        );
        return;
    }
    let Linear { weight, bias } = &given.value;
    for (name, named) in [("weight", weight), ("bias", bias)] {
        let ident = item.ident;
        match (field(item, named.as_ref(), name), named) {
            (Some(field), _) => {
                if let Some(key) = field.attrs.key() {
                    cx.error(
                        key,
                        format!("`{key}` has no use here: the field is the {name} of the layer"),
                    );
                }
            }
            (None, Some(named)) => {
                let member = named.to_token_stream();
                cx.error(named, format!("`{ident}` has no field `{member}`"));
            }
            (None, None) if name == "weight" => cx.error(
                linear,
                format!(
                    "`{ident}` has no field `weight`: `linear(weight = ..)` says which field is the weight"
                ),
            ),
            (None, None) => {}
        }
    }
    let others = item.fields().filter(|field| !field.kind.is_skipped());
    let parts = Parts::of(item);
    let is_part = |field: &Field<'_>| parts.as_ref().is_some_and(|parts| parts.have(field));
    for key in others
        .filter(|field| !is_part(field))
        .filter_map(|field| field.attrs.key())
    {
        cx.error(
            key,
            format!("`{key}` does not go with `{linear}`: other fields are cloned, as by `skip`"),
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
