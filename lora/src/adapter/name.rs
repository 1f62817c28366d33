//! The names that adapters can have.

use crate::error::shorten;
use crate::{Error, Result};

/// The name of the adapter that conversion creates, as in PEFT.
pub const DEFAULT_ADAPTER: &str = "default";

/// Checks the name of an adapter. The name is a part of parameter paths and the name of a
/// directory. So it must have 1 to 255 bytes, and hold no `.`, `/`, `\`, `:` or control character.
///
/// # Errors
/// If the name is not a valid adapter name.
pub fn check_name(name: &str) -> Result<()> {
    let wrong = |char: char| matches!(char, '.' | '/' | '\\' | ':') || char.is_control();
    if name.is_empty() || name.len() > 255 || name.contains(wrong) {
        let name = shorten(name);
        return Err(Error::Config(vec![format!(
            "{name:?} cannot be the name of an adapter: it must have 1 to 255 bytes, without `.`, \
             `/`, `\\`, `:` and control characters"
        )]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_paths() {
        for name in ["default", "a", "my-adapter_2", "ü", "with space"] {
            check_name(name).unwrap();
        }
        let long = "x".repeat(256);
        for name in [
            "", ".", "..", "a.b", "../x", "/etc", "a/b", "a\\b", "a\0", "a\n", &long,
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
