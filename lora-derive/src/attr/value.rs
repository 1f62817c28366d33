//! The values: which literals a key takes, and what they mean.

use syn::punctuated::Punctuated;
use syn::{Error, Ident, Lit, LitInt, LitStr, Result, Token, WherePredicate};

/// A kind of value that an attribute takes.
pub trait Literal: Sized {
    const WHAT: &str;
    const EXAMPLE: &str;
    fn read(input: syn::parse::ParseStream<'_>) -> Result<Self>;
}

impl Literal for LitInt {
    const WHAT: &str = "an integer";
    const EXAMPLE: &str = "8";
    fn read(input: syn::parse::ParseStream<'_>) -> Result<Self> {
        input.parse()
    }
}

impl Literal for Lit {
    const WHAT: &str = "a number";
    const EXAMPLE: &str = "0.5";
    fn read(input: syn::parse::ParseStream<'_>) -> Result<Self> {
        // Takes a leading minus: that the number is too small is then said of its value.
        match input.parse()? {
            number @ (Lit::Int(_) | Lit::Float(_)) => Ok(number),
            other => Err(Error::new_spanned(other, "not a number")),
        }
    }
}

impl Literal for LitStr {
    const WHAT: &str = "a string";
    const EXAMPLE: &str = "\"..\"";
    fn read(input: syn::parse::ParseStream<'_>) -> Result<Self> {
        input.parse()
    }
}

impl Literal for Ident {
    const WHAT: &str = "a name for the alias";
    const EXAMPLE: &str = "LoraNetConfig";
    fn read(input: syn::parse::ParseStream<'_>) -> Result<Self> {
        input.parse()
    }
}

/// The value of `rank`.
pub fn rank(lit: &LitInt) -> Result<usize> {
    let refuse = |message: &str| Err(Error::new_spanned(lit, message));
    if !matches!(lit.suffix(), "" | "usize") {
        return refuse(&format!("the rank is a `usize`, not `{}`", lit.suffix()));
    }
    match lit.base10_parse() {
        Ok(0) => refuse("the rank is 0: it must be at least 1"),
        Ok(rank) => Ok(rank),
        Err(_) if lit.base10_digits().starts_with('-') => {
            refuse("the rank is negative: it must be at least 1")
        }
        Err(_) => refuse("the rank is too large"),
    }
}

/// The value of `alpha`.
pub fn alpha(lit: &Lit) -> Result<f64> {
    let alpha = number("alpha", lit)?;
    if alpha > 0.0 && alpha.is_finite() {
        return Ok(alpha);
    }
    Err(Error::new_spanned(lit, "alpha must be above 0 and finite"))
}

/// The value of `dropout`.
pub fn dropout(lit: &Lit) -> Result<f64> {
    let dropout = number("dropout", lit)?;
    if (0.0..1.0).contains(&dropout) {
        return Ok(dropout);
    }
    let message =
        "dropout must be at least 0 and below 1: it is the share of inputs that are dropped";
    Err(Error::new_spanned(lit, message))
}

fn number(key: &str, lit: &Lit) -> Result<f64> {
    let (digits, suffix) = match lit {
        Lit::Float(lit) => (lit.base10_digits(), lit.suffix()),
        Lit::Int(lit) => (lit.base10_digits(), lit.suffix()),
        other => return Err(Error::new_spanned(other, "not a number")),
    };
    if !matches!(suffix, "" | "f64") {
        let message = format!("`{key}` is an `f64`, not `{suffix}`");
        return Err(Error::new_spanned(lit, message));
    }
    digits
        .parse()
        .map_err(|_| Error::new_spanned(lit, "not a number"))
}

/// A name in a path: `fc1`, or several with dots between.
pub fn segment(name: &LitStr) -> Result<String> {
    let value = name.value();
    let message = if value.is_empty() {
        "the name is empty: to leave the field out of the path, use `flatten`"
    } else if value.split('.').any(str::is_empty) {
        "the name has an empty part: write it as in \"mlp.fc1\""
    } else {
        return Ok(value);
    };
    Err(Error::new_spanned(name, message))
}

/// The name of a type.
pub fn ty(name: &LitStr) -> Result<Ident> {
    name.parse().map_err(|_| {
        let message = format!("`{}` is not a name for a type", name.value());
        Error::new_spanned(name, message)
    })
}

/// The predicates of a where clause.
pub fn bound(bound: &LitStr) -> Result<Vec<WherePredicate>> {
    let parser = Punctuated::<WherePredicate, Token![,]>::parse_terminated;
    let predicates = bound.parse_with(parser).map_err(|error| {
        let message = format!("not where-clause predicates, such as \"T: LoraModel\": {error}");
        Error::new_spanned(bound, message)
    })?;
    Ok(predicates.into_iter().collect())
}
