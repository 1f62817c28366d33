//! Ctrl-C and `kill`: the programs stop at their next step and clean up.

use crate::program::Stop;
use anyhow::{Context, Result};
use signal_hook::consts::TERM_SIGNALS;
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// The signal that arrived, 0 for none; empty until [`catch`].
static ARRIVED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// From here on a request to stop makes [`check`] fail, in place of ending the program at once. A
/// second request ends it at once.
///
/// # Errors
/// If the system refuses.
pub fn catch() -> Result<()> {
    let arrived = ARRIVED.get_or_init(Arc::default);
    let again = Arc::new(AtomicBool::new(false));
    for &signal in TERM_SIGNALS {
        // In this order: what is first must not see what the second has set.
        flag::register_conditional_shutdown(signal, 128 + signal, again.clone())
            .and_then(|_| flag::register(signal, again.clone()))
            .and_then(|_| flag::register_usize(signal, arrived.clone(), signal as usize))
            .context("cannot catch Ctrl-C")?;
    }
    Ok(())
}

/// Called between the steps of a work.
///
/// # Errors
/// [`Stop::Signal`] if somebody has asked the program to stop.
pub fn check() -> Result<()> {
    let arrived = ARRIVED
        .get()
        .map_or(0, |arrived| arrived.load(Ordering::Relaxed));
    match u8::try_from(arrived) {
        Ok(signal @ 1..) => Err(Stop::Signal(signal).into()),
        _ => Ok(()),
    }
}
