//! `#[lora::forward]`: an impl block, and its copy for the LoRA type; or a function, or the impl block of a
//! type that is no model, with a gradient where candle's own calls have none.

mod calls;
mod generics;
mod items;
mod near;
mod rename;

use crate::attr::{Entry, Given, key, parse_entries, set, value};
use crate::ctxt::Ctxt;
use crate::{krate, name};
use generics::{generics, layers};
use items::{finish, is_conditional, makes, only_base};
use near::Near;
use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use rename::{Also, Rename};
use syn::visit_mut::VisitMut;
use syn::{Ident, ImplItem, Item, ItemImpl, Path, Type, TypePath, parse_quote, parse2};

/// The arguments of `#[lora::forward(..)]`.
#[derive(Default)]
struct Args {
    krate: Option<Given<Path>>,
    name: Option<Given<Ident>>,
    plain: Option<Given<()>>,
    skip: Option<Given<Vec<Ident>>>,
    also: Option<Given<Vec<Path>>>,
}

const ARGS: &[&str] = &["crate", "name", "plain", "skip", "also"];

impl Args {
    fn parse(cx: &Ctxt, tokens: TokenStream) -> Self {
        let mut all = Self::default();
        for entry in parse_entries(cx, tokens) {
            match entry.key.to_string().as_str() {
                "crate" => set(cx, &mut all.krate, &entry, |e| krate::parse(&e.value()?)),
                "name" => set(cx, &mut all.name, &entry, |e| value::ty(&e.value()?)),
                "plain" => set(cx, &mut all.plain, &entry, Entry::flag),
                "skip" => set(cx, &mut all.skip, &entry, Entry::list),
                "also" => set(cx, &mut all.also, &entry, Entry::list),
                _ => entry.unknown(cx, ARGS, &[], ""),
            }
        }
        all
    }

    /// A function has no copy that arguments could shape.
    fn of_function(&self, cx: &Ctxt) {
        let keys = [
            key(&self.name),
            key(&self.plain),
            key(&self.skip),
            key(&self.also),
        ];
        for key in keys.into_iter().flatten() {
            cx.error(
                key,
                format!("`{key}` has no use on a function: the function has no copy"),
            );
        }
    }

    /// Nor has the impl block of a plain type.
    fn of_plain(&self, cx: &Ctxt) {
        for key in [key(&self.name), key(&self.skip), key(&self.also)]
            .into_iter()
            .flatten()
        {
            cx.error(
                key,
                format!("`{key}` does not go with `plain`: the block has no copy"),
            );
        }
    }
}

/// The whole expansion: the errors, the impl block, and the copy.
pub fn expand(args: TokenStream, input: TokenStream) -> TokenStream {
    let cx = Ctxt::default();
    let args = Args::parse(&cx, args);
    let krate = krate::path(args.krate.as_ref().map(|given| &given.value));
    let mut base = match parse2(input.clone()) {
        Ok(Item::Impl(base)) => base,
        Ok(Item::Fn(mut function)) => {
            args.of_function(&cx);
            calls::differentiate(&function.sig, &mut function.block, &krate);
            let errors = cx.into_errors();
            return quote!(#errors #function);
        }
        Ok(other) => {
            cx.error(head(&other), NEITHER_IMPL_NOR_FN);
            let errors = cx.into_errors();
            return quote!(#errors #input);
        }
        Err(error) => return error.into_compile_error(),
    };
    if args.plain.is_some() {
        args.of_plain(&cx);
        in_place(&mut base, &krate);
        let errors = cx.into_errors();
        return quote!(#errors #base);
    }
    let copy = copy(&cx, &args, &base, &krate);
    finish(&mut base);
    let errors = cx.into_errors();
    quote!(#errors #base #copy)
}

const NEITHER_IMPL_NOR_FN: &str = "`#[lora::forward]` goes on an impl block, such as \
                                   `impl Module for Net` or `impl Net`, or on a function";

/// Rewrites the methods of a type that is its own LoRA type.
fn in_place(block: &mut ItemImpl, krate: &TokenStream) {
    for item in &mut block.items {
        if let ImplItem::Fn(method) = item {
            calls::differentiate(&method.sig, &mut method.block, krate);
        }
    }
}

/// What to underline of an item.
fn head(item: &Item) -> TokenStream {
    match item {
        Item::Struct(item) => item.ident.to_token_stream(),
        Item::Enum(item) => item.ident.to_token_stream(),
        Item::Trait(item) => item.ident.to_token_stream(),
        Item::Mod(item) => item.ident.to_token_stream(),
        other => other.to_token_stream(),
    }
}

fn copy(cx: &Ctxt, args: &Args, base: &ItemImpl, krate: &TokenStream) -> Option<TokenStream> {
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
        None => name::lora(ident),
    };
    let skipped = args.skip.as_ref().map_or(&[][..], |given| &given.value);
    let also = args.also.iter().flat_map(|given| &given.value);
    let mut rename = Rename {
        own: (ident.clone(), lora.clone()),
        also: also.filter_map(Also::new).collect(),
        kept: skipped.to_vec(),
        layers: layers(cx, skipped, base),
        near: Near::default(),
        krate: krate.clone(),
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
    rename.near.take(&base.generics);
    for item in &copy.items {
        if let ImplItem::Fn(item) = item {
            rename.near.take_from(item);
        }
    }
    for item in &mut copy.items {
        if let ImplItem::Fn(item) = item
            && makes(&item.sig.output, ident)
        {
            // There is an error for it, which is enough.
            item.block = parse_quote!({ loop {} });
        }
        // Types in what is left out of a build need not exist.
        rename.near.rest(is_conditional(item));
        rename.visit_impl_item_mut(item);
        if let ImplItem::Fn(item) = item {
            rename.alias(&mut item.block);
            calls::differentiate(&item.sig, &mut item.block, krate);
        }
    }
    if !is_trait && copy.items.is_empty() {
        return None;
    }
    let conditions: Vec<_> = copy
        .attrs
        .iter()
        .filter(|attr| attr.path().is_ident("cfg"))
        .cloned()
        .collect();
    // The user sees each lint once, in the block as written.
    let derived = is_trait.then(|| quote!(#[automatically_derived]));
    let copy = quote! {
        #derived
        #[allow(warnings, clippy::all)]
        #copy
    };
    Some(rename.near.wrap(&conditions, copy))
}
