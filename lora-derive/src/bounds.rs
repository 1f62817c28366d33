//! The where clauses of the generated items.

use crate::ast::{Data, Item, Kind, Style};
use crate::params::uses;
use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use std::collections::BTreeSet;
use syn::{Generics, Type, WherePredicate, parse_quote};

/// The item's generics with the bounds that the LoRA type needs.
pub struct Bounds {
    /// For the LoRA type itself.
    pub lora: Generics,
    /// For the impls.
    pub impls: Generics,
}

impl Bounds {
    /// Infers the bounds from the fields, or takes those of `bound = ".."`.
    pub fn new(item: &Item<'_>, krate: &TokenStream) -> Self {
        let mut lora = item.generics.clone();
        if let Some(given) = &item.attrs.bound {
            extend(&mut lora, given.value.iter().cloned());
            let impls = lora.clone();
            return Self { lora, impls };
        }
        let mut layers = Once::default();
        let mut models = Once::default();
        let mut skipped = Once::default();
        let mut configs = Once::default();
        for field in item.fields() {
            let used = uses(field.ty, item.generics);
            match field.kind {
                Kind::Rank { .. } => layers.extend(used),
                Kind::Model | Kind::Trainable => models.extend(used),
                Kind::Skip if !used.is_empty() => skipped.extend([field.ty.clone()]),
                Kind::Config { .. } if !used.is_empty() => configs.extend([field.ty.clone()]),
                Kind::Skip | Kind::Config { .. } | Kind::Parts(_) => {}
            }
        }
        models.types.retain(|ty| !layers.contains(ty));
        let layers = layers.types.iter();
        let models = models.types.iter();
        let layers = layers.map(|ty| parse_quote!(#ty: #krate::LoraLayer));
        let models = models.map(|ty| parse_quote!(#ty: #krate::LoraModel));
        extend(&mut lora, layers.chain(models));
        let mut impls = lora.clone();
        let skipped = skipped.types.iter();
        let skipped = skipped.map(|ty| parse_quote!(#ty: _lora::Clone));
        let configs = configs.types.iter();
        let configs = configs.map(|ty| parse_quote!(#ty: _lora::Clone + _lora::Debug));
        extend(&mut impls, skipped.chain(configs));
        let assumed = assumed(item).into_iter();
        extend(
            &mut impls,
            assumed.map(|ty| parse_quote!(for<'__lora> #ty: _lora::LoraModel)),
        );
        Self { lora, impls }
    }
}

/// The type of a struct's last field, where it is a name without parameters that is not known to be
/// a model, and no other field can stand in its place.
///
/// Whether a struct has a size hangs on its last field: if that is no model, every mention of the
/// LoRA type in an impl is an error of its own. The impls take it for granted that it is one; what
/// is wrong shows once, at the field. A name with parameters may lead back to the type itself, and
/// rustc would go round in circles.
fn assumed(item: &Item<'_>) -> Option<Type> {
    let Data::Struct(fields) = &item.data else {
        return None;
    };
    let last = fields.fields.last()?;
    let movable = fields.style == Style::Named && fields.fields.len() > 1;
    let Type::Path(path) = last.ty else {
        return None;
    };
    let plain = path.qself.is_none() && path.path.segments.iter().all(|s| s.arguments.is_empty());
    let own = path.path.is_ident(item.ident) || path.path.is_ident("Self");
    let foreign = !movable && !last.is_known() && plain && !own;
    (foreign && uses(last.ty, item.generics).is_empty()).then(|| last.ty.clone())
}

fn extend(generics: &mut Generics, predicates: impl Iterator<Item = WherePredicate>) {
    let mut predicates = predicates.peekable();
    if predicates.peek().is_some() {
        generics.make_where_clause().predicates.extend(predicates);
    }
}

/// Types in the order they came, each once.
#[derive(Default)]
struct Once {
    types: Vec<Type>,
    seen: BTreeSet<String>,
}

impl Once {
    fn extend(&mut self, types: impl IntoIterator<Item = Type>) {
        for ty in types {
            if self.seen.insert(ty.to_token_stream().to_string()) {
                self.types.push(ty);
            }
        }
    }

    fn contains(&self, ty: &Type) -> bool {
        self.seen.contains(&quote!(#ty).to_string())
    }
}
