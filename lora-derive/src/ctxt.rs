//! [`Ctxt`]: collects the errors of an item, so that one build shows all of them.

use proc_macro2::TokenStream;
use quote::ToTokens;
use std::cell::RefCell;
use std::fmt::Display;

/// The errors found so far.
#[derive(Default)]
pub struct Ctxt {
    errors: RefCell<Vec<syn::Error>>,
}

impl Ctxt {
    /// Adds an error that underlines these tokens.
    pub fn error(&self, tokens: impl ToTokens, message: impl Display) {
        self.add(syn::Error::new_spanned(tokens, message));
    }

    /// Adds an error of the parser.
    pub fn add(&self, error: syn::Error) {
        self.errors.borrow_mut().push(error);
    }

    /// The value, or the error if there is one.
    pub fn ok<T>(&self, result: syn::Result<T>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    /// The errors as `compile_error!` calls, if there are any.
    pub fn into_errors(self) -> Option<TokenStream> {
        let mut errors = self.errors.into_inner();
        // Some are found by reading an attribute, some by comparing several: the user goes through
        // the source from top to bottom.
        errors.sort_by_key(|error| {
            let span = error.span().unwrap();
            (span.line(), span.column())
        });
        let errors = errors.iter().map(syn::Error::to_compile_error);
        (errors.len() > 0).then(|| errors.collect())
    }
}
