//! Ranks that are threads of one process.

use super::{Collective, Parallel, failed};
use crate::{Error, Result};
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// What all ranks gave in a call, by rank.
type Given = Arc<Vec<Vec<u8>>>;

/// Where the ranks meet.
struct Group {
    ranks: usize,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

#[derive(Default)]
struct Meeting {
    /// The number of the present call.
    call: usize,
    /// What ranks gave to it.
    given: Vec<Option<Vec<u8>>>,
    /// What all gave to the call before.
    last: Given,
    /// The rank that stopped the others, and why.
    stopped: Option<(usize, String)>,
}

struct Thread {
    rank: usize,
    group: Arc<Group>,
}

impl Group {
    fn meeting(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives something to a call, and takes what all gave.
    fn exchange(&self, rank: usize, bytes: Vec<u8>) -> Result<Given> {
        let mut meeting = self.meeting();
        let call = meeting.call;
        meeting.given[rank] = Some(bytes);
        if meeting.given.iter().all(Option::is_some) {
            let empty = vec![None; self.ranks];
            let given = std::mem::replace(&mut meeting.given, empty);
            meeting.last = Arc::new(given.into_iter().flatten().collect());
            meeting.call += 1;
            self.changed.notify_all();
        }
        // The next call cannot end before this rank is in it: `last` is of this one.
        while meeting.call == call {
            if let Some((rank, reason)) = &meeting.stopped {
                return Err(failed(format!("rank {rank} stopped all: {reason}")));
            }
            let woken = self.changed.wait(meeting);
            meeting = woken.unwrap_or_else(PoisonError::into_inner);
        }
        Ok(Arc::clone(&meeting.last))
    }
}

impl Thread {
    /// What all ranks gave, which is as long on each.
    fn exchange(&self, bytes: Vec<u8>) -> Result<Given> {
        let length = bytes.len();
        let given = self.group.exchange(self.rank, bytes)?;
        match given.iter().all(|given| given.len() == length) {
            true => Ok(given),
            false => Err(failed(
                "the ranks do not do the same: their buffers differ in length".into(),
            )),
        }
    }
}

impl Collective for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.group.ranks
    }

    fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        let given = self.exchange(bytes.to_vec())?;
        bytes.copy_from_slice(&given[0]);
        Ok(())
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        let given = self.exchange(bytes.collect())?;
        values.fill(0.0);
        // In the order of the ranks, whichever came first: each gets the same bits.
        for given in given.iter() {
            let (numbers, _) = given.as_chunks();
            for (value, number) in values.iter_mut().zip(numbers) {
                *value += f32::from_le_bytes(*number);
            }
        }
        Ok(())
    }

    fn stop(&self, reason: &str) {
        let mut meeting = self.group.meeting();
        meeting.stopped.get_or_insert((self.rank, reason.into()));
        self.group.changed.notify_all();
    }
}

impl Parallel {
    /// Does the same work on so many threads, each of which is a rank, and gives what each came to. Each
    /// thread needs a model, batches and a trainer of its own.
    ///
    /// For tests and for programs that will run on several machines: on one, a single rank computes on all
    /// cores.
    ///
    /// # Errors
    /// The error of the rank that failed first, which ends the work of the others.
    ///
    /// # Panics
    /// If a rank does. The others are then stopped, too.
    pub fn threads<T: Send, E: From<Error> + std::fmt::Display + Send>(
        ranks: usize,
        work: impl Fn(&Self) -> Result<T, E> + Sync,
    ) -> Result<Vec<T>, E> {
        let ranks = ranks.max(1);
        let group = Arc::new(Group {
            ranks,
            meeting: Mutex::new(Meeting {
                given: vec![None; ranks],
                ..Default::default()
            }),
            changed: Condvar::new(),
        });
        let run = &|rank| {
            let group = Arc::clone(&group);
            Self::over(Thread { rank, group }).work(&work)
        };
        let ended: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..ranks)
                .map(|rank| scope.spawn(move || run(rank)))
                .collect();
            let ended = threads.into_iter().map(|thread| thread.join());
            ended.map(|ended| ended.and_then(|ended| ended)).collect()
        });
        let first = group.meeting().stopped.as_ref().map(|(rank, _)| *rank);
        let is_first = |rank| first.is_none_or(|first| first == rank);
        let mut results = Vec::new();
        for (rank, ended) in ended.into_iter().enumerate() {
            match ended {
                Err(panic) if is_first(rank) => resume_unwind(panic),
                Ok(Err(error)) if is_first(rank) => return Err(error),
                Ok(Ok(result)) => results.push(result),
                // It only repeats what the first said.
                _ => {}
            }
        }
        Ok(results)
    }
}
