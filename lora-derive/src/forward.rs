//! `#[lora::forward]`: an impl block, and its copy for the LoRA type.

use crate::attr::{self, Entry, Given, set};
use crate::ctxt::Ctxt;
use crate::krate;
use crate::rename::Rename;
use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::ext::IdentExt;
use syn::visit::{self, Visit};
use syn::visit_mut::VisitMut;
use syn::{
    Attribute, Generics, Ident, ImplItem, Item, ItemImpl, MetaList, Path, ReturnType, Type,
    TypeParamBound, TypePath, TypeReference, WherePredicate, parse_quote, parse2,
};

/// The arguments of `#[lora::forward(..)]`.
#[derive(Default)]
struct Args {
    krate: Option<Given<Path>>,
    name: Option<Given<Ident>>,
    skip: Option<Given<Vec<Ident>>>,
    also: Option<Given<Vec<Ident>>>,
}

const ARGS: &[&str] = &["crate", "name", "skip", "also"];

impl Args {
    fn parse(cx: &Ctxt, tokens: TokenStream) -> Self {
        let mut all = Self::default();
        for entry in attr::parse_entries(cx, tokens) {
            match entry.key.to_string().as_str() {
                "crate" => set(cx, &mut all.krate, &entry, |e| krate::parse(&e.string()?)),
                "name" => set(cx, &mut all.name, &entry, |e| {
                    attr::identifier(&e.string()?)
                }),
                "skip" => set(cx, &mut all.skip, &entry, Entry::list),
                "also" => set(cx, &mut all.also, &entry, Entry::list),
                _ => entry.unknown(cx, ARGS, &[], ""),
            }
        }
        all
    }
}

/// The whole expansion: the errors, the impl block, and the copy.
pub fn expand(args: TokenStream, input: TokenStream) -> TokenStream {
    let cx = Ctxt::default();
    let args = Args::parse(&cx, args);
    let mut base = match parse2(input.clone()) {
        Ok(Item::Impl(base)) => base,
        Ok(other) => {
            cx.error(head(&other), NOT_AN_IMPL);
            let errors = cx.into_errors();
            return quote!(#errors #input);
        }
        Err(error) => return error.into_compile_error(),
    };
    let copy = copy(&cx, &args, &base);
    finish(&mut base);
    let errors = cx.into_errors();
    quote!(#errors #base #copy)
}

const NOT_AN_IMPL: &str = "`#[lora::forward]` goes on an impl block, such as `impl Module for Net` \
                           or `impl Net`";

/// What to underline of an item.
fn head(item: &Item) -> TokenStream {
    match item {
        Item::Fn(item) => item.sig.ident.to_token_stream(),
        Item::Struct(item) => item.ident.to_token_stream(),
        Item::Enum(item) => item.ident.to_token_stream(),
        Item::Trait(item) => item.ident.to_token_stream(),
        Item::Mod(item) => item.ident.to_token_stream(),
        other => other.to_token_stream(),
    }
}

fn copy(cx: &Ctxt, args: &Args, base: &ItemImpl) -> Option<TokenStream> {
    let path = match &*base.self_ty {
        Type::Path(TypePath {
            qself: None, path, ..
        }) => path,
        other => {
            cx.error(
                other,
                "`#[lora::forward]` is for a type with a name, one that derives `LoraModel`",
            );
            return None;
        }
    };
    let ident = &path.segments.last()?.ident;
    let lora = match &args.name {
        Some(name) => name.value.clone(),
        None => lora_name(ident),
    };
    let mut types = vec![(ident.clone(), lora.clone())];
    let also = args.also.iter().flat_map(|given| &given.value);
    types.extend(also.map(|ty| (ty.clone(), lora_name(ty))));
    let mut rename = Rename {
        types,
        layers: layers(cx, args, base),
        krate: krate::path(args.krate.as_ref().map(|given| &given.value)),
    };

    let mut copy = base.clone();
    copy.generics = generics(&mut rename, &base.generics);
    if let Type::Path(ty) = &mut *copy.self_ty
        && let Some(last) = ty.path.segments.last_mut()
    {
        let span = last.ident.span();
        last.ident = lora;
        last.ident.set_span(span);
    }
    if let Some((path, _)) = &mut copy.trait_ {
        for segment in &mut path.segments {
            rename.visit_path_arguments_mut(&mut segment.arguments);
        }
    }
    let is_trait = base.trait_.is_some();
    let items = std::mem::take(&mut copy.items).into_iter();
    copy.items = items
        .filter(|item| !only_base(cx, item, ident, is_trait))
        .collect();
    for item in &mut copy.items {
        if let ImplItem::Fn(item) = item
            && makes(&item.sig.output, ident)
        {
            // There is an error for it, which is enough.
            item.block = parse_quote!({ loop {} });
        }
        rename.visit_impl_item_mut(item);
    }
    if !is_trait && copy.items.is_empty() {
        return None;
    }
    // The user sees each lint once, in the block as written.
    let derived = is_trait.then(|| quote!(#[automatically_derived]));
    Some(quote! {
        #derived
        #[allow(warnings, clippy::all)]
        #copy
    })
}

fn lora_name(ident: &Ident) -> Ident {
    format_ident!("Lora{}", ident.unraw(), span = ident.span())
}

/// The type parameters of the type, less the skipped ones, and the associated types that the
/// block's where clauses speak of.
fn layers(cx: &Ctxt, args: &Args, base: &ItemImpl) -> Vec<Type> {
    let params = || base.generics.type_params();
    let skipped: Vec<&Ident> = args.skip.iter().flat_map(|given| &given.value).collect();
    for name in &skipped {
        if !params().any(|param| param.ident == **name) {
            let message = format!("`{name}` is not a type parameter of this impl block");
            cx.error(name, message);
        }
    }
    let own = params()
        .filter(|param| mentions(&base.self_ty, &param.ident) && !skipped.contains(&&param.ident));
    let mut layers: Vec<Type> = own.map(|param| param.ident.clone()).map(ty).collect();
    for predicate in base
        .generics
        .where_clause
        .iter()
        .flat_map(|c| &c.predicates)
    {
        if let WherePredicate::Type(predicate) = predicate
            && let Type::Path(bounded) = &predicate.bounded_ty
            && bounded.path.segments.len() > 1
            && let Some(first) = bounded.path.segments.first()
            && params().any(|param| param.ident == first.ident)
        {
            layers.push(predicate.bounded_ty.clone());
        }
    }
    layers
}

fn ty(ident: Ident) -> Type {
    parse_quote!(#ident)
}

/// The generics with `T: LoraModel` for each layer, and its bounds for `Lora<T>` too.
fn generics(rename: &mut Rename, base: &Generics) -> Generics {
    let krate = rename.krate.clone();
    let mut predicates: Vec<WherePredicate> = Vec::new();
    for layer in &rename.layers {
        predicates.push(parse_quote!(#layer: #krate::LoraModel));
    }
    let inline = base
        .type_params()
        .map(|param| (ty(param.ident.clone()), &param.bounds));
    let clauses = base
        .where_clause
        .iter()
        .flat_map(|clause| &clause.predicates);
    let clauses = clauses.filter_map(|predicate| match predicate {
        WherePredicate::Type(predicate) if predicate.lifetimes.is_none() => {
            Some((predicate.bounded_ty.clone(), &predicate.bounds))
        }
        _ => None,
    });
    let all: Vec<_> = inline.chain(clauses).collect();
    for (bounded, bounds) in all {
        let mut lora = bounded.clone();
        rename.visit_type_mut(&mut lora);
        if lora == bounded {
            continue;
        }
        let bounds = bounds.iter().filter(|bound| !is_relaxed(bound));
        let mut bounds: Vec<TypeParamBound> = bounds.cloned().collect();
        for bound in &mut bounds {
            rename.visit_type_param_bound_mut(bound);
        }
        if !bounds.is_empty() {
            predicates.push(parse_quote!(#lora: #(#bounds)+*));
        }
    }
    let mut generics = base.clone();
    if !predicates.is_empty() {
        generics.make_where_clause().predicates.extend(predicates);
    }
    generics
}

/// `?Sized`
fn is_relaxed(bound: &TypeParamBound) -> bool {
    bound.to_token_stream().to_string().starts_with('?')
}

/// True for what stays on the base: items marked `#[lora(skip)]`, and what makes a `Self`.
fn only_base(cx: &Ctxt, item: &ImplItem, base: &Ident, is_trait: bool) -> bool {
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
fn makes(output: &ReturnType, base: &Ident) -> bool {
    match output {
        ReturnType::Type(_, ty) => mentions(ty, base),
        ReturnType::Default => false,
    }
}

fn mentions(ty: &Type, name: &Ident) -> bool {
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

/// Takes `#[lora(..)]` off the items, as rustc does not know it there. A method that only the LoRA
/// type's users call is no dead code.
fn finish(base: &mut ItemImpl) {
    let is_trait = base.trait_.is_some();
    for item in &mut base.items {
        let attrs = match item {
            ImplItem::Fn(item) => &mut item.attrs,
            ImplItem::Const(item) => &mut item.attrs,
            ImplItem::Type(item) => &mut item.attrs,
            ImplItem::Macro(item) => &mut item.attrs,
            _ => continue,
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
