//! Ctrl-C and `kill` as requests to stop.

use crate::{Error, Result};
#[cfg(unix)]
use signal_hook::consts::SIGUSR1;
use signal_hook::consts::TERM_SIGNALS;
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Ctrl-C and `kill` as requests to stop, in place of the process's end. A second one ends the process at
/// once.
///
/// `kill -USR1` is one, too, where there are such signals: `mpirun` passes it on to all ranks, and schedulers
/// announce by it that a job's time is over. [Stopping several ranks](super::scaling#how-to-stop-a-run) says
/// what `mpirun` makes of the others.
///
/// ```no_run
/// use lora::train::{Interrupt, TrainOptions, Trainer};
/// # type Model = lora::Lora<candle_nn::Linear>;
///
/// let interrupt = Interrupt::catch()?;
/// let trainer = Trainer::<Model>::new(TrainOptions::epochs(3))
///     .output("output")
///     .progress()
///     .stop_when(|| interrupt.signal().is_some());
/// # let _ = trainer;
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Interrupt {
    /// The signal that arrived, 0 for none.
    arrived: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Catches the signals from here on, for the rest of the process.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn catch() -> Result<Self> {
        let (arrived, again) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let signals = TERM_SIGNALS.iter();
        #[cfg(unix)]
        let signals = signals.chain(&[SIGUSR1]);
        for &signal in signals {
            // In this order: what is first must not see what the second has set.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again))
                .and_then(|_| flag::register(signal, Arc::clone(&again)))
                .and_then(|_| flag::register_usize(signal, Arc::clone(&arrived), signal as usize))
                .map_err(|error| {
                    Error::Training(vec![format!("Ctrl-C cannot be caught: {error}")])
                })?;
        }
        Ok(Self { arrived })
    }

    /// The number of the signal that arrived, if one did: 2 for Ctrl-C, 15 for `kill`.
    pub fn signal(&self) -> Option<u8> {
        match u8::try_from(self.arrived.load(Ordering::Relaxed)) {
            Ok(signal @ 1..) => Some(signal),
            _ => None,
        }
    }
}
