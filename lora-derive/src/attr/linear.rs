//! `linear` and `linear(weight = .., bias = ..)`: a struct that is a linear layer.

use super::Entry;
use syn::parse::{Parse, ParseStream};
use syn::{Error, Ident, Member, Result, Token};

/// The fields of weight and bias, where the attribute names them.
#[derive(Default)]
pub struct Linear {
    pub weight: Option<Member>,
    pub bias: Option<Member>,
}

impl Linear {
    /// Reads the attribute's value.
    pub fn parse(entry: &Entry) -> Result<Self> {
        let mut all = Self::default();
        for Named { key, member } in entry.optional_list()? {
            let slot = match key.to_string().as_str() {
                "weight" => &mut all.weight,
                "bias" => &mut all.bias,
                _ => {
                    let message = format!("unknown key `{key}`: known are `weight` and `bias`");
                    return Err(Error::new_spanned(key, message));
                }
            };
            if slot.replace(member).is_some() {
                return Err(Error::new_spanned(&key, format!("`{key}` is given twice")));
            }
        }
        Ok(all)
    }
}

/// `weight = ws`, or `weight = 0` in a tuple.
struct Named {
    key: Ident,
    member: Member,
}

impl Parse for Named {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let key: Ident = input.parse()?;
        if !input.peek(Token![=]) {
            let message = format!("`{key}` needs the name of a field: `{key} = ..`");
            return Err(Error::new_spanned(key, message));
        }
        input.parse::<Token![=]>()?;
        let member = input.parse()?;
        Ok(Self { key, member })
    }
}
