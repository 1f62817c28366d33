//! The processes that train together, if `mpirun` has started several.

use anyhow::Result;
use lora::train::Parallel;
use std::env;

/// How those who start processes over MPI tell them how many they are: Open MPI, MPICH and Intel MPI, MVAPICH.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"];

/// Does the work of this process: alone, or as one of several.
///
/// # Errors
/// Those of the work. Of several processes, all end with the first error, which is on the error output.
pub fn run(work: impl FnOnce(&Parallel) -> Result<()>) -> Result<()> {
    let sizes = SIZES.iter().filter_map(|name| env::var(name).ok());
    match sizes.filter_map(|size| size.parse().ok()).max() {
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
        done => done.map(Ok).map_err(|error| format!("{error:#}")),
    })?
}

#[cfg(not(feature = "mpi"))]
fn several(size: usize, work: impl FnOnce(&Parallel) -> Result<()>) -> Result<()> {
    if size > 1 {
        anyhow::bail!(
            "mpirun has started {size} processes, but this `lora` trains with one: build it with \
             `--features cli,mpi`"
        );
    }
    work(&Parallel::alone())
}
