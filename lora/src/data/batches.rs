//! Which examples make a batch, and in which order.

use crate::{Error, Result};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

/// How batches are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BatchOptions {
    /// Examples in a batch. The last one of an epoch may be smaller.
    pub size: usize,
    /// Decides the order.
    pub seed: u64,
    /// Examples of this many batches are sorted by length, so that little is padded. With 1 the order is
    /// fully random.
    pub window: usize,
    /// Whether the order is random. Without, batches are in the order of the data, for evaluation.
    pub shuffle: bool,
    /// Leaves out the last batch of an epoch if it is smaller.
    pub drop_last: bool,
}

impl BatchOptions {
    /// Batches of this size, in random order, from windows of 50 batches.
    pub fn new(size: usize) -> Self {
        Self {
            size,
            seed: 0,
            window: 50,
            shuffle: true,
            drop_last: false,
        }
    }

    /// Sets [`seed`](Self::seed).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets [`window`](Self::window).
    pub fn window(mut self, batches: usize) -> Self {
        self.window = batches;
        self
    }

    /// Sets [`shuffle`](Self::shuffle).
    pub fn shuffle(mut self, shuffle: bool) -> Self {
        self.shuffle = shuffle;
        self
    }

    /// Sets [`drop_last`](Self::drop_last).
    pub fn drop_last(mut self, drop: bool) -> Self {
        self.drop_last = drop;
        self
    }
}

/// Where training is in its data. Serialise the state beside the model's
/// ([`optim::save_state`](crate::optim::save_state)); [`Batches::resume`] goes on there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchState {
    options: BatchOptions,
    epoch: u64,
    next: usize,
    examples: usize,
    /// Of the examples' lengths: other data has another order.
    fingerprint: u64,
}

/// The batches of each epoch, as indices of examples.
///
/// An epoch's order depends on lengths, options and the number of the epoch alone.
///
/// ```
/// use lora::data::{BatchOptions, Batches};
///
/// let lengths = [3, 9, 4, 8, 5];
/// let options = BatchOptions::new(2).seed(3);
/// let mut batches = Batches::new(lengths, &options)?;
/// let first = batches.next_batch().unwrap();
///
/// // In the middle of an epoch, the state goes into a file, and training goes on from there.
/// let state = serde_json::to_string(&batches.state()).unwrap();
/// let mut later = Batches::resume(lengths, &serde_json::from_str(&state).unwrap())?;
/// assert_eq!(later.next_batch(), batches.next_batch());
/// # let _ = first;
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Batches {
    lengths: Vec<usize>,
    state: BatchState,
    order: Vec<Vec<usize>>,
}

impl Batches {
    /// The first epoch of examples of these lengths.
    ///
    /// # Errors
    /// [`Error::Data`] if there is no example, or a size is 0.
    pub fn new(lengths: impl IntoIterator<Item = usize>, options: &BatchOptions) -> Result<Self> {
        let lengths: Vec<usize> = lengths.into_iter().collect();
        let mut problems = Vec::new();
        if lengths.is_empty() {
            problems.push("there is no example to make a batch of".to_string());
        }
        if options.size == 0 {
            problems.push("the size of a batch is 0: it must be at least 1".into());
        }
        if options.window == 0 {
            problems.push("the window of batches is 0: it must be at least 1".into());
        }
        if options.drop_last && lengths.len() < options.size {
            problems.push(format!(
                "{} examples make no whole batch of {}: make batches smaller, or keep the last",
                lengths.len(),
                options.size
            ));
        }
        if !problems.is_empty() {
            return Err(Error::Data(problems));
        }
        let state = BatchState {
            options: options.clone(),
            epoch: 0,
            next: 0,
            examples: lengths.len(),
            fingerprint: fingerprint(&lengths),
        };
        let order = order(&lengths, options, 0);
        Ok(Self {
            lengths,
            state,
            order,
        })
    }

    /// Goes on where the state was taken, with the same examples.
    ///
    /// # Errors
    /// [`Error::Data`] if the state is one of other examples, whose batches would be others.
    pub fn resume(lengths: impl IntoIterator<Item = usize>, state: &BatchState) -> Result<Self> {
        let mut batches = Self::new(lengths, &state.options)?;
        let found = &batches.state;
        if (found.examples, found.fingerprint) != (state.examples, state.fingerprint) {
            return Err(Error::Data(vec![format!(
                "the saved state is one of {} examples, these are {} or have other lengths: train on with \
                 the same data and tokenizer, or begin a new run",
                state.examples, found.examples
            )]));
        }
        batches.order = order(&batches.lengths, &state.options, state.epoch);
        batches.state = state.clone();
        Ok(batches)
    }

    /// The examples of the next batch. `None` ends an epoch; the next call begins another.
    pub fn next_batch(&mut self) -> Option<Vec<usize>> {
        let batch = self.order.get(self.state.next).cloned();
        match batch {
            Some(_) => self.state.next += 1,
            None => {
                self.state.next = 0;
                self.state.epoch += 1;
                self.order = order(&self.lengths, &self.state.options, self.state.epoch);
            }
        }
        batch
    }

    /// Where the batches are.
    pub fn state(&self) -> BatchState {
        self.state.clone()
    }

    /// The number of the epoch, from 0.
    pub fn epoch(&self) -> u64 {
        self.state.epoch
    }

    /// The number of batches of an epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.order.len()
    }

    /// The share of tokens that are padding when each batch of this epoch is padded to its longest.
    pub fn padding_share(&self) -> f64 {
        let (mut tokens, mut places) = (0, 0);
        for batch in &self.order {
            let lengths = batch.iter().map(|&index| self.lengths[index]);
            places += batch.len() * lengths.clone().max().unwrap_or(0);
            tokens += lengths.sum::<usize>();
        }
        1.0 - tokens as f64 / places.max(1) as f64
    }
}

/// The batches of an epoch.
fn order(lengths: &[usize], options: &BatchOptions, epoch: u64) -> Vec<Vec<usize>> {
    let mut indices: Vec<usize> = (0..lengths.len()).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    rng.set_stream(epoch);
    if options.shuffle {
        indices.shuffle(&mut rng);
        let window = options.size.saturating_mul(options.window);
        if options.window > 1 {
            for window in indices.chunks_mut(window) {
                window.sort_by_key(|&index| Reverse(lengths[index]));
            }
        }
    }
    let batches = indices.chunks(options.size).map(<[usize]>::to_vec);
    let mut batches: Vec<Vec<usize>> = batches
        .filter(|batch| !options.drop_last || batch.len() == options.size)
        .collect();
    if options.shuffle {
        batches.shuffle(&mut rng);
    }
    batches
}

/// FNV-1a of the lengths.
fn fingerprint(lengths: &[usize]) -> u64 {
    let bytes = lengths
        .iter()
        .flat_map(|&length| (length as u64).to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
