//! Ctrl-C and `kill`: the programs stop at their next step and clean up.

use crate::program::Stop;
use anyhow::Result;
use lora::train::Interrupt;
use std::sync::OnceLock;

/// What was caught; empty until [`catch`].
static INTERRUPT: OnceLock<Interrupt> = OnceLock::new();

/// From here on a request to stop makes [`check`] fail, in place of ending the program at once. A
/// second request ends it at once.
///
/// # Errors
/// If the system refuses.
pub fn catch() -> Result<()> {
    if INTERRUPT.get().is_none() {
        let interrupt = Interrupt::catch()?;
        INTERRUPT.get_or_init(|| interrupt);
    }
    Ok(())
}

/// Whether somebody has asked the program to stop.
pub fn requested() -> Option<u8> {
    INTERRUPT.get().and_then(Interrupt::signal)
}

/// Called between the steps of a work.
///
/// # Errors
/// [`Stop::Signal`] if somebody has asked the program to stop.
pub fn check() -> Result<()> {
    match requested() {
        Some(signal) => Err(Stop::Signal(signal).into()),
        None => Ok(()),
    }
}
