//! What the command prints. The macros of the standard library panic where nobody reads.

use anyhow::{Context, Result};
use std::fmt::{self, Display, Formatter};
use std::io::{self, ErrorKind, Write};

/// Nobody reads the output any more, as in `lora inspect .. | head`.
#[derive(Clone, Copy, Debug)]
pub struct Closed;

impl Display for Closed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output")
    }
}

impl std::error::Error for Closed {}

/// Prints a line of the result.
///
/// # Errors
/// [`Closed`] if nobody reads it, or what else keeps it from being written.
pub fn say(line: impl Display) -> Result<()> {
    told(writeln!(io::stdout().lock(), "{line}"))
}

/// Prints a piece of a line of the result, at once.
///
/// # Errors
/// As [`say`].
pub fn stream(piece: impl Display) -> Result<()> {
    let mut to = io::stdout().lock();
    told(write!(to, "{piece}").and_then(|()| to.flush()))
}

/// Prints a line beside the result, to the error output.
///
/// # Errors
/// As [`say`].
pub fn note(line: impl Display) -> Result<()> {
    told(writeln!(io::stderr().lock(), "{line}"))
}

fn told(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        written => written.context("cannot write the output"),
    }
}
