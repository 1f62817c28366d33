//! [`Ctxt`]: collects the errors of an item, so that one build shows all of them.

use proc_macro2::TokenStream;
use quote::ToTokens;
use std::cell::RefCell;
use std::fmt::Display;

/// The errors found so far.
#[derive(Default)]
pub struct Ctxt {
    errors: RefCell<Option<syn::Error>>,
}

impl Ctxt {
    /// Adds an error that underlines these tokens.
    pub fn error(&self, tokens: impl ToTokens, message: impl Display) {
        self.add(syn::Error::new_spanned(tokens, message));
    }

    /// Adds an error of the parser.
    pub fn add(&self, error: syn::Error) {
        match &mut *self.errors.borrow_mut() {
            Some(errors) => errors.combine(error),
            empty => *empty = Some(error),
        }
    }

    /// The value, or the error if there is one.
    pub fn ok<T>(&self, result: syn::Result<T>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    /// The errors as `compile_error!` calls, if there are any.
    pub fn into_errors(self) -> Option<TokenStream> {
        let errors = self.errors.into_inner();
        errors.map(|errors| errors.into_compile_error())
    }
}
