//! The derive's view of an item: what each field is to its LoRA type.

use crate::attr;
use crate::ctxt::Ctxt;
use crate::{name, tuple};
use proc_macro2::{Span, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Attribute, DeriveInput, Generics, Ident, Member, Type, Visibility};

/// A struct or enum to derive for.
pub struct Item<'a> {
    pub ident: &'a Ident,
    /// The name of the LoRA type.
    pub lora: Ident,
    pub vis: &'a Visibility,
    pub generics: &'a Generics,
    pub attrs: attr::Container,
    /// Attributes that the LoRA type takes over.
    pub kept: Vec<Attribute>,
    pub data: Data<'a>,
    /// The type is its own LoRA type.
    pub plain: bool,
}

/// What an [`Item`] holds.
pub enum Data<'a> {
    Struct(Fields<'a>),
    Enum(Vec<Variant<'a>>),
}

/// A variant of an enum.
pub struct Variant<'a> {
    pub ident: &'a Ident,
    pub kept: Vec<Attribute>,
    pub fields: Fields<'a>,
}

/// The fields of a struct or variant.
pub struct Fields<'a> {
    pub style: Style,
    pub fields: Vec<Field<'a>>,
}

/// How [`Fields`] are written.
#[derive(Clone, Copy, PartialEq)]
pub enum Style {
    Named,
    Tuple,
    Unit,
}

/// A field, and what it is to the LoRA type.
pub struct Field<'a> {
    pub member: Member,
    pub vis: &'a Visibility,
    pub ty: &'a Type,
    /// Where messages show the field: where its type begins and ends, or that of a part which may be bad.
    pub ends: (Span, Span),
    pub kept: Vec<Attribute>,
    pub attrs: attr::Field,
    pub kind: Kind<'a>,
    /// What the field adds to the path; nothing if it is flattened or the only one of a tuple.
    pub segment: Option<String>,
    /// How sure the field is to have a type in the LoRA struct.
    pub trust: Trust,
}

/// What a field is to the LoRA type.
pub enum Kind<'a> {
    /// A model: replaced by its LoRA model.
    Model,
    /// `rank`: a model of layers that are adapted by default.
    Rank {
        rank: Option<usize>,
        alpha: Option<f64>,
        dropout: Option<f64>,
    },
    /// `trainable`: a model that is trained in full.
    Trainable,
    /// `skip`: cloned.
    Skip,
    /// `config`: a configuration, with that of the conversion beside it.
    Config { alias: Option<Ident> },
    /// A tuple, or a container of such, whose parts have attributes: each part is a field.
    Parts(Fields<'a>),
}

impl Kind<'_> {
    /// What the attributes make of a field. Where some exclude each other, which is an error, the
    /// first counts.
    fn new(attrs: &attr::Field) -> Self {
        if let Some(rank) = &attrs.rank {
            Self::Rank {
                rank: rank.value,
                alpha: attrs.alpha.as_ref().map(|given| given.value),
                dropout: attrs.dropout.as_ref().map(|given| given.value),
            }
        } else if attrs.trainable.is_some() {
            Self::Trainable
        } else if attrs.skip.is_some() {
            Self::Skip
        } else if let Some(config) = &attrs.config {
            Self::Config {
                alias: config.value.clone(),
            }
        } else {
            Self::Model
        }
    }

    /// True if the field has a LoRA model, which the walks go through.
    pub fn is_model(&self) -> bool {
        match self {
            Self::Skip | Self::Config { .. } => false,
            Self::Parts(parts) => parts.fields.iter().any(|part| part.kind.is_model()),
            _ => true,
        }
    }

    /// True if the value can be shown. What is skipped need not be `Debug`.
    pub fn is_shown(&self) -> bool {
        match self {
            Self::Skip => false,
            Self::Parts(parts) => parts.fields.iter().all(|part| part.kind.is_shown()),
            _ => true,
        }
    }

    /// The first part of a tuple that may be no model.
    fn suspect(&self) -> Option<&Field<'_>> {
        let Self::Parts(parts) = self else {
            return None;
        };
        parts.fields.iter().find(|part| !part.is_known())
    }

    /// True if the value is cloned as it is.
    pub fn is_skipped(&self) -> bool {
        matches!(self, Self::Skip)
    }
}

const KEPT: &[&str] = &["allow", "cfg", "deprecated", "doc"];

/// Names in types that are models for sure.
const VALUES: &[&str] = &[
    "Box", "Option", "Tensor", "Vec", "bool", "f32", "f64", "usize",
];

/// Names that are models where they are candle's, which most are.
const LAYERS: &[&str] = &[
    "Activation",
    "BatchNorm",
    "Conv1d",
    "Conv2d",
    "Dropout",
    "Embedding",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "RmsNorm",
    "candle_core",
    "candle_nn",
];

impl<'a> Item<'a> {
    /// Reads an item. `None` if no LoRA type can be made of it; the errors say why.
    pub fn new(cx: &Ctxt, input: &'a DeriveInput) -> Option<Self> {
        let attrs = attr::Container::parse(cx, &input.attrs);
        let data = match &input.data {
            syn::Data::Struct(data) => Data::Struct(Fields::new(cx, &data.fields, false)),
            syn::Data::Enum(data) => {
                let variants = data.variants.iter();
                Data::Enum(variants.map(|variant| Variant::new(cx, variant)).collect())
            }
            syn::Data::Union(data) => {
                cx.error(
                    data.union_token,
                    "a union has no LoRA counterpart: use an enum",
                );
                return None;
            }
        };
        let ident = &input.ident;
        let lora = match &attrs.name {
            Some(name) if name.value != *ident => name.value.clone(),
            _ => name::lora(ident),
        };
        let fieldless = match &data {
            Data::Struct(_) => false,
            Data::Enum(variants) => variants.iter().all(|v| v.fields.fields.is_empty()),
        };
        Some(Self {
            ident,
            lora,
            vis: &input.vis,
            generics: &input.generics,
            plain: attrs.linear.is_none()
                && (attrs.plain.is_some() || (fieldless && attrs.name.is_none())),
            attrs,
            kept: attr::kept(
                &input.attrs,
                &["allow", "cfg", "deprecated", "must_use", "non_exhaustive"],
            ),
            data,
        })
    }

    /// The struct's fields, or those of each variant.
    pub fn bodies(&self) -> Vec<&Fields<'a>> {
        match &self.data {
            Data::Struct(fields) => vec![fields],
            Data::Enum(variants) => variants.iter().map(|v| &v.fields).collect(),
        }
    }

    /// All fields, of the struct or of every variant, and the parts of tuples among them.
    pub fn fields(&self) -> impl Iterator<Item = &Field<'a>> {
        let bodies = self.bodies().into_iter();
        bodies.flat_map(Fields::with_parts)
    }
}

impl<'a> Variant<'a> {
    fn new(cx: &Ctxt, variant: &'a syn::Variant) -> Self {
        attr::refuse_on_variant(cx, &variant.attrs);
        Self {
            ident: &variant.ident,
            kept: attr::kept(&variant.attrs, KEPT),
            fields: Fields::new(cx, &variant.fields, true),
        }
    }
}

impl<'a> Fields<'a> {
    fn new(cx: &Ctxt, fields: &'a syn::Fields, is_variant: bool) -> Self {
        let style = match fields {
            syn::Fields::Named(_) => Style::Named,
            syn::Fields::Unnamed(_) => Style::Tuple,
            syn::Fields::Unit => Style::Unit,
        };
        let newtype = style == Style::Tuple && fields.len() == 1;
        let mut fields: Vec<_> = fields
            .iter()
            .zip(fields.members())
            .map(|(field, member)| Field::new(cx, field, member, newtype))
            .collect();
        if is_variant {
            // The name that a pattern binds is one token: all else goes where it can be, too.
            for field in &mut fields {
                field.ends.1 = field.ends.0;
            }
        }
        Self { style, fields }
    }

    /// The parts of a field's tuple.
    fn parts(cx: &Ctxt, field: &'a syn::Field, ty: &'a Type, given: &[attr::Part]) -> Option<Self> {
        let first = given.first()?;
        let Some(tuple) = tuple::within(ty) else {
            let key = &first.key;
            let message = format!(
                "`{key}(..)` is for a part of a tuple, and none is written here: an alias hides its parts"
            );
            cx.error(key, message);
            return None;
        };
        let count = tuple.elems.len();
        for (i, part) in given.iter().enumerate() {
            let key = &part.key;
            if part.index >= count {
                cx.error(
                    key,
                    format!("there is no part `{key}`: the tuple has {count}"),
                );
            } else if given[..i].iter().any(|other| other.index == part.index) {
                cx.error(key, format!("`{key}` is given twice"));
            }
        }
        let parts = tuple.elems.iter().enumerate().map(|(index, ty)| {
            let given = given.iter().find(|part| part.index == index);
            let attrs = given.map(|part| part.attrs.clone()).unwrap_or_default();
            Field::of(cx, field, ty, Member::from(index), attrs, false)
        });
        Some(Self {
            style: Style::Tuple,
            fields: parts.collect(),
        })
    }

    /// The fields, and the parts of tuples among them.
    fn with_parts(&self) -> Vec<&Field<'a>> {
        let mut all = Vec::new();
        for field in &self.fields {
            all.push(field);
            if let Kind::Parts(parts) = &field.kind {
                all.extend(parts.with_parts());
            }
        }
        all
    }
}

impl<'a> Field<'a> {
    fn new(cx: &Ctxt, field: &'a syn::Field, member: Member, newtype: bool) -> Self {
        let attrs = attr::Field::parse(cx, &field.attrs);
        Self::of(cx, field, &field.ty, member, attrs, newtype)
    }

    /// The field itself, or a part of its tuple.
    fn of(
        cx: &Ctxt,
        field: &'a syn::Field,
        ty: &'a Type,
        member: Member,
        attrs: attr::Field,
        newtype: bool,
    ) -> Self {
        let segment = match (&attrs.name, &member) {
            (Some(name), _) => Some(name.value.clone()),
            _ if attrs.flatten.is_some() || newtype => None,
            (None, Member::Named(name)) => Some(name.unraw().to_string()),
            (None, Member::Unnamed(index)) => Some(index.index.to_string()),
        };
        let kind = match Fields::parts(cx, field, ty, &attrs.parts) {
            Some(parts) => Kind::Parts(parts),
            None => Kind::new(&attrs),
        };
        Self {
            member,
            vis: &field.vis,
            ty,
            ends: kind.suspect().map_or_else(|| ends(ty), |part| part.ends),
            kept: attr::kept(&field.attrs, KEPT),
            trust: Trust::new(ty, &kind),
            kind,
            attrs,
            segment,
        }
    }
}

/// How sure a field's type is to have a LoRA type, by its names alone. Serves messages only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    Unknown,
    /// The user calls the type a layer, by a `rank` or as `trainable`.
    Marked,
    /// The name is that of a layer of candle's.
    Layer,
    Sure,
}

impl Trust {
    fn new(ty: &Type, kind: &Kind<'_>) -> Self {
        if let Kind::Parts(parts) = kind {
            let parts = parts.fields.iter().map(|part| part.trust);
            return parts.min().unwrap_or(Self::Sure);
        }
        if !kind.is_model() {
            return Self::Sure;
        }
        let tokens = ty.to_token_stream().into_iter();
        let of = tokens.filter_map(|token| match token {
            TokenTree::Ident(name) if VALUES.iter().any(|known| name == known) => Some(Self::Sure),
            TokenTree::Ident(name) if LAYERS.iter().any(|known| name == known) => Some(Self::Layer),
            TokenTree::Ident(_) => Some(Self::Unknown),
            _ => None,
        });
        match of.min() {
            Some(Self::Unknown) if !matches!(kind, Kind::Model) => Self::Marked,
            trust => trust.unwrap_or(Self::Sure),
        }
    }
}

impl Field<'_> {
    /// True for a field that is not converted, or whose type is known by name to be a model. Serves
    /// messages only.
    pub fn is_known(&self) -> bool {
        self.trust >= Trust::Layer
    }
}

/// Where the first and the last token of the type are.
fn ends(ty: &Type) -> (Span, Span) {
    let first = ty.span();
    let last = ty.to_token_stream().into_iter().last();
    (first, last.map_or(first, |token| token.span()))
}
