//! From any format to any.

use super::{Format, Options, export, find, import};
use crate::{Error, Result};
use std::path::Path;

/// Writes an adapter in another format, and returns the one that was found. Between two formats of
/// other tools, PEFT's directory is made on the way, as each goes to it and comes from it.
///
/// ```no_run
/// use lora::peft::import::{Format, Options, convert};
///
/// let options = Options::new().base("SmolLM2-135M");
/// convert("mlx/adapters", "adapter.gguf", Format::Gguf, &options)?;
/// # Ok::<(), lora::Error>(())
/// ```
///
/// # Errors
/// If there is no adapter at `from`, or it has the format asked for; and those of [`import`] and
/// [`export`], which name all that the other format has no place for.
pub fn convert(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    format: Format,
    options: &Options,
) -> Result<Format> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let Some(located) = find::find(from)? else {
        return Err(Error::file(from, "holds no adapter: it is a checkpoint"));
    };
    let found = located.format;
    if found == format {
        return Err(Error::file(from, format!("is of {format} already")));
    }
    if format == Format::Peft {
        return import(from, to, options);
    }
    if found == Format::Peft {
        let Some(dir) = located.dir else {
            let problem = "has no adapter_config.json beside it, which tells the scaling";
            return Err(Error::file(from, problem));
        };
        return export(dir, to, format, options).map(|()| found);
    }
    let between = tempfile::tempdir().map_err(|error| Error::file(std::env::temp_dir(), error))?;
    import(from, between.path(), options)?;
    let exported = export(between.path(), to, format, options);
    // The caller does not know the directory between.
    exported.map_err(|error| match error {
        Error::File { path, problems } if path.starts_with(between.path()) => Error::File {
            path: from.into(),
            problems,
        },
        error => error,
    })?;
    Ok(found)
}
