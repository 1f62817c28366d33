//! Names of adapters: a part of parameter names, and of paths of files.

/// Checks the name of an adapter. It is a segment of parameter paths and the name of a
/// sub-directory, so that it has no dot and no separator.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let shown = super::parse::shorten(name);
    if name.is_empty() {
        return Err("the name of an adapter is empty".into());
    }
    if let Some(bad) = name
        .chars()
        .find(|c| matches!(c, '.' | '/' | '\\' | ':') || c.is_control())
    {
        return Err(format!(
            "`{shown}` is no name for an adapter: it is a part of paths and cannot hold {bad:?}"
        ));
    }
    if name.len() > 128 {
        return Err(format!(
            "`{shown}` is too long a name for an adapter: at most 128 bytes"
        ));
    }
    if name == "__base__" {
        return Err("`__base__` is PEFT's name for no adapter".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in [
            "", ".", "..", "a.b", "a/b", "a\\b", "C:x", "a\0b", "__base__",
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name(&"x".repeat(129)).is_err());
        for good in ["default", "lora_", "Über 2", "a-b_c"] {
            assert_eq!(check_name(good), Ok(()));
        }
    }
}
