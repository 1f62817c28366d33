//! The items of an impl block: which the copy has, and what is taken off them.

use crate::ctxt::Ctxt;
use quote::ToTokens;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Ident, ImplItem, ItemImpl, MetaList, ReturnType, Type, TypePath, TypeReference,
    parse_quote,
};

/// True for what stays on the base: items marked `#[lora(skip)]`, and what makes a `Self`.
pub fn only_base(cx: &Ctxt, item: &ImplItem, base: &Ident, is_trait: bool) -> bool {
    match item {
        ImplItem::Fn(item) => {
            let makes = makes(&item.sig.output, base);
            if makes && is_trait {
                let name = &item.sig.ident;
                let made = match &item.sig.output {
                    ReturnType::Type(_, ty) => ty.to_token_stream(),
                    ReturnType::Default => name.to_token_stream(),
                };
                cx.error(
                    made,
                    format!(
                        "`{name}` makes a `{base}`, which the copy for its LoRA type cannot do: \
                         write this impl without `#[lora::forward]`"
                    ),
                );
            }
            is_marked(cx, &item.attrs) || (makes && !is_trait)
        }
        ImplItem::Const(item) => {
            is_marked(cx, &item.attrs) || (mentions(&item.ty, base) && !is_trait)
        }
        ImplItem::Type(item) => is_marked(cx, &item.attrs),
        ImplItem::Macro(item) => is_marked(cx, &item.attrs),
        _ => false,
    }
}

/// True if a function returns a `Self`.
pub fn makes(output: &ReturnType, base: &Ident) -> bool {
    match output {
        ReturnType::Type(_, ty) => mentions(ty, base),
        ReturnType::Default => false,
    }
}

/// True if a type mentions `Self` or a name, outside references.
pub fn mentions(ty: &Type, name: &Ident) -> bool {
    let mut mentions = Mentions::new(name);
    mentions.visit_type(ty);
    mentions.found
}

/// True if there is a `#[lora(skip)]` among the attributes.
fn is_marked(cx: &Ctxt, attrs: &[Attribute]) -> bool {
    let mut marks = attrs
        .iter()
        .filter(|attr| attr.path().is_ident("lora"))
        .peekable();
    let marked = marks.peek().is_some();
    for attr in marks {
        let is_skip = |list: &MetaList| list.tokens.to_string() == "skip";
        if !attr.meta.require_list().is_ok_and(is_skip) {
            cx.error(
                attr,
                "`#[lora(skip)]` is what goes here: on the base type only",
            );
        }
    }
    marked
}

/// True for an item under `#[cfg]`.
pub fn is_conditional(item: &mut ImplItem) -> bool {
    attrs(item).is_some_and(|attrs| attrs.iter().any(|attr| attr.path().is_ident("cfg")))
}

fn attrs(item: &mut ImplItem) -> Option<&mut Vec<Attribute>> {
    match item {
        ImplItem::Fn(item) => Some(&mut item.attrs),
        ImplItem::Const(item) => Some(&mut item.attrs),
        ImplItem::Type(item) => Some(&mut item.attrs),
        ImplItem::Macro(item) => Some(&mut item.attrs),
        _ => None,
    }
}

/// Takes `#[lora(..)]` off the items, as rustc does not know it there. A method that only the LoRA
/// type's users call is no dead code.
pub fn finish(base: &mut ItemImpl) {
    let is_trait = base.trait_.is_some();
    for item in &mut base.items {
        let Some(attrs) = attrs(item) else {
            continue;
        };
        let all = attrs.len();
        attrs.retain(|attr| !attr.path().is_ident("lora"));
        if !is_trait && attrs.len() == all {
            attrs.push(parse_quote!(#[allow(dead_code)]));
        }
    }
}

/// Looks for `Self` or a name in a type, outside references.
struct Mentions<'a> {
    name: &'a Ident,
    found: bool,
}

impl<'a> Mentions<'a> {
    fn new(name: &'a Ident) -> Self {
        Self { name, found: false }
    }
}

impl<'ast> Visit<'ast> for Mentions<'_> {
    fn visit_type_path(&mut self, ty: &'ast TypePath) {
        let last = ty.path.segments.last();
        self.found |= ty.path.is_ident("Self") || last.is_some_and(|last| last.ident == *self.name);
        visit::visit_type_path(self, ty);
    }

    fn visit_type_reference(&mut self, _: &'ast TypeReference) {}
}
