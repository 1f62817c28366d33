//! Ranks that `mpirun` starts.

use super::{Collective, Parallel, failed};
use crate::Result;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use mpi::{Threading, topology::SimpleCommunicator};
use std::fmt::Display;
use std::io::{Write, stderr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// MPI counts in 32 bits; so many bytes or numbers go at once.
const AT_ONCE: usize = 1 << 28;

/// The ranks of the program. MPI ends with it.
struct World {
    rank: usize,
    ranks: usize,
    /// Locked by each call: MPI may be called from any thread, but from one at a time.
    universe: Mutex<Universe>,
}

impl World {
    fn universe(&self) -> MutexGuard<'_, Universe> {
        self.universe.lock().unwrap_or_else(PoisonError::into_inner)
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
        for bytes in bytes.chunks_mut(AT_ONCE) {
            world.process_at_rank(0).broadcast_into(bytes);
        }
        Ok(())
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        let universe = self.universe();
        let world = universe.world();
        let own = values.to_vec();
        for (own, values) in own.chunks(AT_ONCE).zip(values.chunks_mut(AT_ONCE)) {
            world.all_reduce_into(own, values, SystemOperation::sum());
        }
        Ok(())
    }

    /// Ends all processes, with the exit code 1.
    fn stop(&self, reason: &str) {
        // If this fails, there is nobody left to tell.
        let Self { rank, ranks, .. } = self;
        let _ = writeln!(stderr(), "rank {rank} of {ranks} stops all: {reason}");
        SimpleCommunicator::world().abort(1);
    }
}

/// Stops the other ranks if this one panics: they would wait for it.
struct Guard<'a>(&'a Parallel);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.collective.stop("it panicked");
        }
    }
}

impl Parallel {
    /// Does the work of a rank, in a process that `mpirun` has started with others.
    ///
    /// A program calls this once, with all that it does beside reading its arguments: the processes end
    /// together. If the work fails or panics on any rank, or a process is lost, all are stopped, and the
    /// reason is on the error output.
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
    /// If MPI was begun before in this process, or the MPI library cannot be used in a process with
    /// threads.
    pub fn mpi<T, E: Display>(work: impl FnOnce(&Self) -> Result<T, E>) -> Result<T> {
        let Some((universe, threads)) = mpi::initialize_with_threading(Threading::Serialized)
        else {
            return Err(failed("MPI can begin only once in a process".into()));
        };
        let world = universe.world();
        let [rank, ranks] = [world.rank(), world.size()].map(|number| number as usize);
        let parallel = Self::over(World {
            rank,
            ranks,
            universe: Mutex::new(universe),
        });
        if threads < Threading::Serialized {
            let problem = "the MPI library cannot be called by a process with threads: use one that was \
                           built with support for them (MPI_THREAD_SERIALIZED)";
            return Err(failed(problem.into()));
        }
        let _guard = Guard(&parallel);
        match work(&parallel) {
            Ok(done) => Ok(done),
            Err(error) => {
                parallel.collective.stop(&error.to_string());
                Err(failed(error.to_string()))
            }
        }
    }
}
