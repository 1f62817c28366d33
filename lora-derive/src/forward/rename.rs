//! Turns code for a base type into code for its LoRA type.

use proc_macro2::{Group, Ident, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::visit_mut::{self, VisitMut};
use syn::{
    ExprPath, Macro, Path, PathArguments, QSelf, Type, UseName, UsePath, UseRename, parse_quote,
};

/// What becomes what.
pub struct Rename {
    /// Types to rename, with their new names. Their arguments stay: a LoRA type has its base
    /// type's.
    pub types: Vec<(Ident, Ident)>,
    /// Type parameters and their associated types that become `Lora<T>`.
    pub layers: Vec<Type>,
    /// The path of the crate.
    pub krate: TokenStream,
}

impl Rename {
    fn ident(&self, ident: &mut Ident) -> bool {
        let renamed = self.types.iter().find(|(old, _)| old == ident);
        if let Some((_, new)) = renamed {
            let mut new = new.clone();
            new.set_span(ident.span());
            *ident = new;
        }
        renamed.is_some()
    }

    /// `Lora<T>`, if this is such a `T`.
    pub fn lora(&self, ty: &Type) -> Option<Type> {
        let krate = &self.krate;
        self.layers
            .contains(ty)
            .then(|| parse_quote!(#krate::Lora<#ty>))
    }

    /// `Lora<T>`, if the identifier is such a `T`. Identifiers are compared, as the tokens of a macro
    /// hold keywords, too, which are no types.
    fn layer(&self, ident: &Ident) -> Option<Type> {
        let is_named = |ty: &&Type| matches!(ty, Type::Path(ty) if ty.qself.is_none() && ty.path.is_ident(ident));
        let ty = self.layers.iter().find(is_named)?;
        self.lora(ty)
    }

    /// Macros are renamed by their tokens.
    fn tokens(&self, tokens: TokenStream) -> TokenStream {
        let mut renamed = TokenStream::new();
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Group(group) => {
                    let mut new = Group::new(group.delimiter(), self.tokens(group.stream()));
                    new.set_span(group.span());
                    renamed.extend([TokenTree::Group(new)]);
                }
                TokenTree::Ident(mut ident) => {
                    let path = matches!(
                        tokens.peek(),
                        Some(TokenTree::Punct(next)) if next.as_char() == ':'
                    );
                    match self.layer(&ident) {
                        _ if self.ident(&mut ident) => ident.to_tokens(&mut renamed),
                        Some(lora) if path => renamed.extend(quote!(<#lora>)),
                        Some(lora) => lora.to_tokens(&mut renamed),
                        None => ident.to_tokens(&mut renamed),
                    }
                }
                other => renamed.extend([other]),
            }
        }
        renamed
    }
}

impl VisitMut for Rename {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        match self.lora(ty) {
            Some(lora) => *ty = lora,
            None => visit_mut::visit_type_mut(self, ty),
        }
    }

    fn visit_path_mut(&mut self, path: &mut Path) {
        for segment in &mut path.segments {
            if !self.ident(&mut segment.ident) && segment.arguments != PathArguments::None {
                self.visit_path_arguments_mut(&mut segment.arguments);
            }
        }
    }

    /// `T::new` becomes `<Lora<T>>::new`.
    fn visit_expr_path_mut(&mut self, expr: &mut ExprPath) {
        let first = expr.path.segments.first();
        let lora = first.and_then(|first| self.layer(&first.ident));
        if let (None, Some(lora)) = (&expr.qself, lora)
            && expr.path.segments.len() > 1
        {
            let rest = expr.path.segments.iter().skip(1);
            expr.path = parse_quote!(:: #(#rest)::*);
            expr.qself = Some(QSelf {
                lt_token: Default::default(),
                ty: Box::new(lora),
                position: 0,
                as_token: None,
                gt_token: Default::default(),
            });
            // The parameter inside is done.
            self.visit_path_mut(&mut expr.path);
        } else {
            visit_mut::visit_expr_path_mut(self, expr);
        }
    }

    fn visit_macro_mut(&mut self, call: &mut Macro) {
        call.tokens = self.tokens(std::mem::take(&mut call.tokens));
    }

    fn visit_use_path_mut(&mut self, path: &mut UsePath) {
        self.ident(&mut path.ident);
        visit_mut::visit_use_path_mut(self, path);
    }

    fn visit_use_name_mut(&mut self, name: &mut UseName) {
        self.ident(&mut name.ident);
    }

    fn visit_use_rename_mut(&mut self, rename: &mut UseRename) {
        self.ident(&mut rename.ident);
    }
}
