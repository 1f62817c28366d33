//! The processes that train together, if `mpirun` has started several.

use anyhow::Result;
use lora::train::Parallel;
use std::{env, process, thread, time::Duration};

/// How those who start processes over MPI tell them how many they are: Open MPI, MPICH and Intel MPI, MVAPICH.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"];
/// And which of them a process is, from 0.
const RANKS: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"];

/// Does the work of this process: alone, or as one of several.
///
/// # Errors
/// Those of a process without others. Several end here, with the first error on the error output.
pub fn run(work: impl FnOnce(&Parallel) -> Result<()>) -> Result<()> {
    match told(SIZES) {
        Some(size) => several(size, work),
        None => work(&Parallel::alone()),
    }
}

#[cfg(feature = "mpi")]
fn several(_: usize, work: impl FnOnce(&Parallel) -> Result<()>) -> Result<()> {
    use crate::shell::end::Stopped;
    Parallel::mpi(|parallel| match work(parallel) {
        // All processes stop at the same step.
        Err(error) if error.is::<Stopped>() => Ok(Err(error)),
        done => done.map(Ok),
    })?
}

#[cfg(not(feature = "mpi"))]
fn several(size: usize, work: impl FnOnce(&Parallel) -> Result<()>) -> Result<()> {
    if size > 1 {
        leave_to_first(1);
        anyhow::bail!(
            "mpirun has started {size} processes, but this `lora` trains with one: build it with \
             `--features cli,mpi`"
        );
    }
    work(&Parallel::alone())
}

/// Ends this process with an exit code if another one of `mpirun` has the same to say.
pub fn leave_to_first(code: i32) {
    if told(RANKS).unwrap_or(0) == 0 {
        return;
    }
    if code != 0 {
        // The first failure is the end of all, and the first process may not have spoken yet.
        thread::sleep(Duration::from_secs(3));
    }
    process::exit(code);
}

fn told(variables: [&str; 3]) -> Option<usize> {
    let values = variables.iter().filter_map(|name| env::var(name).ok());
    values.filter_map(|value| value.parse().ok()).max()
}
