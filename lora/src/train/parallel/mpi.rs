//! Ranks that `mpirun` starts.

use super::{Collective, Parallel, failed};
use crate::{Error, Result};
use mpi::collective::SystemOperation;
use mpi::environment::{Universe, processor_name};
use mpi::request::{Request, Scope, scope};
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use mpi::{Threading, topology::SimpleCommunicator};
use std::fmt::Display;
use std::io::{Write, stderr};
use std::panic::resume_unwind;
use std::process;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// MPI counts in 32 bits; so many bytes or numbers go at once.
const AT_ONCE: usize = 1 << 28;
/// How long a rank that has failed waits for the others to come to their next call. It then ends them.
const PATIENCE: Duration = Duration::from_secs(5);

/// The ranks of the program. MPI ends with it.
struct World {
    rank: usize,
    ranks: usize,
    /// Locked by each call: MPI may be called from any thread, but from one at a time.
    universe: Mutex<Universe>,
    /// The rank that stopped all, and why. No further call reaches another rank then.
    stopped: OnceLock<(usize, String)>,
}

impl World {
    fn universe(&self) -> MutexGuard<'_, Universe> {
        self.universe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Meets the other ranks, as each call begins. All learn whether one has failed, which gives its reason.
    /// Whatever the others were about to do, the failed rank takes part in this.
    fn meet(&self, world: &SimpleCommunicator, reason: Option<&str>) -> Result<()> {
        if self.stopped.get().is_none() {
            let own = reason.map_or(self.ranks, |_| self.rank) as i32;
            let mut first = own;
            scope(|scope| {
                let least = SystemOperation::min();
                let request = world.immediate_all_reduce_into(scope, &own, &mut first, least);
                match reason {
                    Some(reason) => self.wait_or_abort(request, reason),
                    None => request.wait_without_status(),
                }
            });
            if first as usize == self.ranks {
                return Ok(());
            }
            let reason = self.tell_or_learn(world, first, reason.unwrap_or_default());
            self.stopped.get_or_init(|| (first as usize, reason));
        }
        match self.stopped.get() {
            Some((rank, reason)) => Err(failed(format!("rank {rank} stopped all: {reason}"))),
            None => Ok(()),
        }
    }

    /// Waits for ranks that may be far from their next call.
    fn wait_or_abort<'a, S: Scope<'a>>(&self, mut request: Request<'a, i32, S>, reason: &str) {
        let start = Instant::now();
        while let Err(unfinished) = request.test() {
            if start.elapsed() > PATIENCE {
                self.tell(reason);
                SimpleCommunicator::world().abort(1);
            }
            request = unfinished;
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The reason of the first rank that failed, which tells the user, too.
    fn tell_or_learn(&self, world: &SimpleCommunicator, first: i32, own: &str) -> String {
        let mut bytes = Vec::new();
        if first as usize == self.rank {
            self.tell(own);
            bytes.extend(own.bytes());
        }
        let first = world.process_at_rank(first);
        let mut length = bytes.len() as u64;
        first.broadcast_into(&mut length);
        bytes.resize(length as usize, 0);
        first.broadcast_into(&mut bytes[..]);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn tell(&self, reason: &str) {
        let Self { rank, ranks, .. } = self;
        let host = processor_name().unwrap_or_default();
        // If this fails, there is nobody left to tell.
        let _ = writeln!(
            stderr(),
            "rank {rank} of {ranks}, on {host}, stops all: {reason}"
        );
    }
}

impl Collective for World {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        let universe = self.universe();
        let world = universe.world();
        self.meet(&world, None)?;
        for bytes in bytes.chunks_mut(AT_ONCE) {
            world.process_at_rank(0).broadcast_into(bytes);
        }
        Ok(())
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        let universe = self.universe();
        let world = universe.world();
        self.meet(&world, None)?;
        let own = values.to_vec();
        for (own, values) in own.chunks(AT_ONCE).zip(values.chunks_mut(AT_ONCE)) {
            world.all_reduce_into(own, values, SystemOperation::sum());
        }
        Ok(())
    }

    /// Returns when all ranks know, which then end by themselves. Ends them with the exit code 1 if they do not
    /// come to a call within seconds.
    fn stop(&self, reason: &str) {
        let universe = self.universe();
        // The error is the reason.
        let _ = self.meet(&universe.world(), Some(reason));
    }
}

impl Parallel {
    /// Does the work of a rank, in a process that `mpirun` has started with others.
    ///
    /// A program calls this once, with all that it does beside reading its arguments: the processes end
    /// together. If the work fails or panics on any rank, the others get an error from their next call, so
    /// that each can clean up; the process does not return from here then, but ends with the exit code 1, and the
    /// reason of the first rank that failed is on the error output. Ranks that do not come to a call within five
    /// seconds are ended by MPI, and so are all if a process is lost.
    ///
    /// ```no_run
    /// use lora::train::Parallel;
    ///
    /// fn main() -> lora::Result<()> {
    ///     Parallel::mpi(|parallel| -> lora::Result<()> {
    ///         println!("this is {parallel}");
    ///         Ok(())
    ///     })
    /// }
    /// ```
    ///
    /// # Errors
    /// Of a process without others, the work's. If MPI was begun before in this process, or the MPI library
    /// cannot be used in a process with threads.
    pub fn mpi<T, E: From<Error> + Display>(
        work: impl FnOnce(&Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let parallel = Self::over(World::begin()?);
        let ended = parallel.work(|parallel| {
            let done = work(parallel)?;
            // Another rank may fail in what it does last.
            parallel.barrier()?;
            Ok(done)
        });
        if parallel.ranks() > 1 && !matches!(ended, Ok(Ok(_))) {
            // MPI ends first, with all ranks: it would take an exit before for a crash.
            drop(parallel);
            process::exit(1);
        }
        ended.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl World {
    fn begin() -> Result<Self> {
        let begun = mpi::initialize_with_threading(Threading::Serialized);
        let (universe, threads) =
            begun.ok_or_else(|| failed("MPI can begin only once in a process".into()))?;
        if threads < Threading::Serialized {
            let problem = "the MPI library cannot be called by a process with threads: use one that was \
                           built with support for them (MPI_THREAD_SERIALIZED)";
            return Err(failed(problem.into()));
        }
        let world = universe.world();
        Ok(Self {
            rank: world.rank() as usize,
            ranks: world.size() as usize,
            universe: Mutex::new(universe),
            stopped: OnceLock::new(),
        })
    }
}
