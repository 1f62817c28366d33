//! Training by several ranks: processes of one or several machines, or threads.
//!
//! The number of ranks changes the time that a run takes and nothing else. A batch is the batch of all
//! ranks; each computes its share of the examples, and the gradients are summed before anything is done
//! with them. So a checkpoint of any number of ranks goes on with any other.

mod alone;
#[cfg(feature = "mpi")]
mod mpi;
mod share;
mod threads;

pub use share::Share;

use crate::manage::save_state;
use crate::{Error, LoraModule, Result, seed_dropout};
use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::{self, Display};
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;
use tempfile::NamedTempFile;

/// How ranks reach each other: what [`Parallel`] is made over.
///
/// All ranks make the same calls in the same order, and each call returns when all have made it or one
/// has stopped the others. One for NCCL would copy the numbers to the device and back.
pub trait Collective: Send + Sync {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// The number of all ranks.
    fn ranks(&self) -> usize;

    /// Puts the bytes of rank 0 into the place of every other rank's, which are as many.
    ///
    /// # Errors
    /// If a rank cannot be reached, or has stopped the others.
    fn broadcast(&self, bytes: &mut [u8]) -> Result<()>;

    /// Puts the sums over all ranks into the place of each rank's numbers. All ranks get the same bits.
    ///
    /// # Errors
    /// If a rank cannot be reached, or has stopped the others.
    fn sum(&self, values: &mut [f32]) -> Result<()>;

    /// Stops all ranks, which wait for this one: it has failed, for this reason. Their next call is an error.
    /// What an error calls for is called several times; the first counts. An implementation may end the
    /// process here.
    fn stop(&self, reason: &str);
}

/// A rank among those that train together: what [`Trainer::parallel`](super::Trainer::parallel) takes.
///
/// | ranks | made by |
/// |---|---|
/// | one process | [`Parallel::alone`], which the trainer has if none is given |
/// | threads of one process | [`Parallel::threads`] |
/// | processes on one or several machines, started by `mpirun` | `Parallel::mpi`, with the feature `mpi` |
/// | reached in a way of your own | [`Parallel::over`] |
///
/// The [module](super#several-ranks) shows a run.
#[derive(Clone)]
pub struct Parallel {
    collective: Arc<dyn Collective>,
    traffic: Arc<Mutex<Traffic>>,
}

/// What a rank has sent, as it stands in its buffers: how often the network carries a byte is up to the
/// implementation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Traffic {
    /// The number of sums.
    pub sums: usize,
    /// Bytes that were summed.
    pub summed: usize,
    /// The number of broadcasts.
    pub broadcasts: usize,
    /// Bytes that were broadcast.
    pub broadcast: usize,
    /// Seconds in both, with the time in which this rank waited for others.
    pub seconds: f64,
}

impl Parallel {
    /// One process on its own.
    pub fn alone() -> Self {
        Self::over(alone::Alone)
    }

    /// Ranks that reach each other so.
    pub fn over(collective: impl Collective + 'static) -> Self {
        Self {
            collective: Arc::new(collective),
            traffic: Arc::default(),
        }
    }

    /// The number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.collective.rank()
    }

    /// The number of all ranks.
    pub fn ranks(&self) -> usize {
        self.collective.ranks()
    }

    /// Whether this is rank 0, which evaluates, reports and saves.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// What this rank has sent so far.
    pub fn traffic(&self) -> Traffic {
        *self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part of each batch that this rank computes.
    pub(super) fn share(&self) -> Share {
        Share::new(self.rank(), self.ranks())
    }

    /// Stops the other ranks if this one has failed.
    pub(super) fn or_stop<T, E: Display>(&self, result: Result<T, E>) -> Result<T, E> {
        if let Err(error) = &result {
            // With its causes, if it is one of anyhow's.
            self.stop(&format!("{error:#}"));
        }
        result
    }

    /// Does this rank's work, and stops the other ranks if it fails or panics.
    fn work<T, E: Display>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, E>,
    ) -> thread::Result<Result<T, E>> {
        let ended = catch_unwind(AssertUnwindSafe(|| work(self)));
        if let Err(panic) = &ended {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            let text = text.unwrap_or("without a message");
            self.stop(&format!("it panicked: {text}"));
        }
        ended.map(|result| self.or_stop(result))
    }

    fn stop(&self, reason: &str) {
        if self.ranks() > 1 {
            self.collective.stop(reason);
        }
    }

    /// Waits until all ranks have come here.
    ///
    /// # Errors
    /// If a rank has failed, or cannot be reached.
    pub fn barrier(&self) -> Result<()> {
        self.any(false).map(drop)
    }

    /// The sums over all ranks.
    pub(super) fn sum(&self, values: &mut [f32]) -> Result<()> {
        if self.ranks() == 1 {
            return Ok(());
        }
        let start = Instant::now();
        self.collective.sum(values)?;
        self.count(|traffic| {
            traffic.sums += 1;
            traffic.summed += size_of_val(values);
            traffic.seconds += start.elapsed().as_secs_f64();
        });
        Ok(())
    }

    /// Whether this is true on any rank.
    pub(super) fn any(&self, of_rank: bool) -> Result<bool> {
        let mut count = [f32::from(u8::from(of_rank))];
        self.sum(&mut count)?;
        Ok(count[0] > 0.0)
    }

    /// What rank 0 makes, which the others do not.
    pub(super) fn of_first<T: Serialize + DeserializeOwned>(
        &self,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let damaged = |error| failed(format!("what rank 0 sent cannot be read: {error}"));
        if !self.is_first() {
            return serde_json::from_slice(&self.bytes(Vec::new())?).map_err(damaged);
        }
        let made = make()?;
        if self.ranks() > 1 {
            self.bytes(serde_json::to_vec(&made).map_err(damaged)?)?;
        }
        Ok(made)
    }

    /// A file of rank 0, which other ranks get a copy of.
    pub(super) fn file(&self, path: &Path) -> Result<RankFile> {
        if self.ranks() == 1 {
            return Ok(RankFile::Own(path.into()));
        }
        if self.is_first() {
            self.bytes(fs::read(path).map_err(|error| Error::file(path, error))?)?;
            return Ok(RankFile::Own(path.into()));
        }
        let copy = NamedTempFile::new();
        let copy = copy.map_err(|error| Error::file(std::env::temp_dir(), error))?;
        let written = fs::write(copy.path(), self.bytes(Vec::new())?);
        written.map_err(|error| Error::file(copy.path(), error))?;
        Ok(RankFile::Copy(copy))
    }

    /// The bytes of rank 0, whatever the others give.
    fn bytes(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        let mut length = (bytes.len() as u64).to_le_bytes();
        self.broadcast(&mut length)?;
        bytes.resize(u64::from_le_bytes(length) as usize, 0);
        self.broadcast(&mut bytes)?;
        Ok(bytes)
    }

    fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        let start = Instant::now();
        self.collective.broadcast(bytes)?;
        self.count(|traffic| {
            traffic.broadcasts += 1;
            traffic.broadcast += bytes.len();
            traffic.seconds += start.elapsed().as_secs_f64();
        });
        Ok(())
    }

    fn count(&self, add: impl FnOnce(&mut Traffic)) {
        add(&mut self.traffic.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Refuses to go on if this rank's adapters and heads are not those of rank 0.
    pub(super) fn check_same<M: LoraModule>(&self, model: &M, step: usize) -> Result<()> {
        if self.ranks() == 1 {
            return Ok(());
        }
        let own = hash(model)?;
        match self.of_first(|| Ok(own))? == own {
            true => Ok(()),
            false => Err(failed(format!(
                "{self} has other weights than rank 0 after step {step}: start one build of the program on \
                 machines with the same processors, and give every rank the same base model and settings"
            ))),
        }
    }

    /// Seeds what this rank draws in a step. By itself a process draws on; ranks draw other numbers than
    /// their neighbours, and the same again when the run goes on.
    pub(super) fn seed_step(&self, seed: u64, step: usize) {
        if self.ranks() > 1 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(self.rank() as u64);
            rng.set_word_pos(2 * step as u128);
            seed_dropout(rng.next_u64());
        }
    }
}

impl Display for Parallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.ranks())
    }
}

impl fmt::Debug for Parallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parallel({self})")
    }
}

/// A file of rank 0, or a rank's copy, which goes away.
pub(super) enum RankFile {
    Own(PathBuf),
    Copy(NamedTempFile),
}

impl RankFile {
    pub fn path(&self) -> &Path {
        match self {
            Self::Own(path) => path,
            Self::Copy(file) => file.path(),
        }
    }
}

/// Of all that the adapters hold.
fn hash<M: LoraModule>(model: &M) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for (key, tensor) in save_state(model)?.1 {
        hasher.write(key.as_bytes());
        hasher.write(&safetensors::View::data(&tensor));
    }
    Ok(hasher.finish())
}

fn failed(problem: String) -> Error {
    Error::Training(vec![problem])
}
