//! How the command ends.

use crate::shell::flags;
use crate::shell::print::Closed;
use std::fmt::{self, Display, Formatter};
use std::io::{self, Write};
use std::process::ExitCode;

/// The exit codes, as `--help` lists them.
pub const CODES: &str = "\
Exit codes:
  0    done
  1    failed; the last line of the error output says why and what to do.
       `lora diff --exit-code`: the two differ
  2    the command line cannot be understood
  130  stopped by Ctrl-C; what to say to go on is printed
  138  stopped by kill -USR1, as by Ctrl-C; mpirun passes this signal on
  141  nobody reads the output any more, as in `lora inspect .. | head`
  143  stopped by kill, as by Ctrl-C";

/// A request to stop, which the command obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The signal: Ctrl-C sends 2, `kill` 15.
    pub signal: u8,
}

impl Display for Stopped {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("stopped on request")
    }
}

impl std::error::Error for Stopped {}

/// Two files differ, which the exit code shall say.
#[derive(Clone, Copy, Debug)]
pub struct Differ;

impl Display for Differ {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("the two differ")
    }
}

impl std::error::Error for Differ {}

/// The command's end.
pub struct End;

impl End {
    /// Says how the work ended.
    pub fn of(work: anyhow::Result<()>) -> ExitCode {
        let Err(error) = work else {
            return ExitCode::SUCCESS;
        };
        if error.is::<Closed>() {
            return ExitCode::from(128 + 13);
        }
        if error.is::<Differ>() {
            return ExitCode::FAILURE;
        }
        // If this fails, too, there is nobody left to tell.
        if let Some(stopped) = error.downcast_ref::<Stopped>() {
            let _ = writeln!(io::stderr(), "{error:#}");
            return ExitCode::from(128 + stopped.signal);
        }
        let _ = writeln!(
            io::stderr(),
            "error: {}",
            flags::named(&format!("{error:#}"))
        );
        ExitCode::FAILURE
    }
}
