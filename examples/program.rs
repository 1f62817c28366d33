//! How the programs print and end.

use anyhow::{Context, Result};
use std::fmt::{self, Display};
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why a program ends before its work is done, though nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A signal asked for it: Ctrl-C sends 2, `kill` 15.
    Signal(u8),
    /// Nobody reads the output any more, as in `summary | head`.
    Closed,
}

impl Stop {
    /// What a shell shows of a program that a signal ended. A closed pipe is one, SIGPIPE.
    fn code(self) -> u8 {
        match self {
            Self::Signal(signal) => 128 + signal,
            Self::Closed => 128 + 13,
        }
    }
}

impl Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(_) => f.write_str("stopped on request: nothing was written"),
            Self::Closed => f.write_str("nobody reads the output"),
        }
    }
}

impl std::error::Error for Stop {}

/// Whether this process is one of the programs, not a test of their parts.
static RUNS: AtomicBool = AtomicBool::new(false);

/// Does the work of a program and says how it ended.
pub fn run(work: impl FnOnce() -> Result<()>) -> ExitCode {
    RUNS.store(true, Ordering::Relaxed);
    let Err(error) = work() else {
        return ExitCode::SUCCESS;
    };
    let (message, code) = match error.downcast_ref::<Stop>() {
        Some(Stop::Closed) => (None, Stop::Closed.code()),
        Some(stop) => (Some(stop.to_string()), stop.code()),
        None => (Some(format!("error: {error:#}")), 1),
    };
    if let Some(message) = message {
        // If this fails, too, there is nobody left to tell.
        let _ = writeln!(io::stderr(), "{message}");
    }
    ExitCode::from(code)
}

/// Prints a line of the program's result.
///
/// # Errors
/// [`Stop::Closed`] if nobody reads it, or what else keeps it from being written.
pub fn say(line: impl Display) -> Result<()> {
    if RUNS.load(Ordering::Relaxed) {
        return write(io::stdout().lock(), line);
    }
    // Tests capture this.
    println!("{line}");
    Ok(())
}

/// Prints a piece of a line of the program's result, at once.
///
/// # Errors
/// As [`say`].
pub fn stream(piece: &str) -> Result<()> {
    if RUNS.load(Ordering::Relaxed) {
        let mut to = io::stdout().lock();
        return told(write!(to, "{piece}").and_then(|()| to.flush()));
    }
    print!("{piece}");
    Ok(())
}

/// Prints a line beside the result, to the error output.
///
/// # Errors
/// As [`say`].
pub fn note(line: impl Display) -> Result<()> {
    if RUNS.load(Ordering::Relaxed) {
        return write(io::stderr().lock(), line);
    }
    eprintln!("{line}");
    Ok(())
}

/// The macros of the standard library panic where nobody reads.
fn write(mut to: impl Write, line: impl Display) -> Result<()> {
    told(writeln!(to, "{line}"))
}

fn told(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Stop::Closed.into()),
        written => written.context("cannot write the output"),
    }
}
