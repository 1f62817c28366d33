//! Where batches come from.

use super::Share;
use crate::data::{BatchOptions, BatchState, Batches};
use crate::{Error, Result};
use serde_json::Value;

/// Batches, epoch after epoch, that can go on from a saved place.
///
/// [`Examples`] is one for data in memory. One of your own keeps in its [`state`](Self::state) all that
/// decides the next batches: the place, and the state of what it draws.
pub trait Source {
    /// What the loss is computed of.
    type Batch;

    /// The next batch. `None` ends an epoch; the next call begins another.
    ///
    /// # Errors
    /// If a batch cannot be read.
    fn next_batch(&mut self) -> Result<Option<Self::Batch>>;

    /// A rank's part of the next batch, for training by [several ranks](super#several-ranks). `None` ends an
    /// epoch, as it does for [`next_batch`](Self::next_batch), on all ranks at once. `Some(None)` is a batch
    /// that has no example for this rank.
    ///
    /// # Errors
    /// As for [`next_batch`](Self::next_batch). If there are several ranks, unless the source implements
    /// this.
    fn next_share(&mut self, share: Share) -> Result<Option<Option<Self::Batch>>> {
        match share.ranks() {
            1 => Ok(self.next_batch()?.map(Some)),
            ranks => Err(Error::Training(vec![format!(
                "the source of batches cannot be split among {ranks} ranks: use train::Examples, or \
                 implement Source::next_share"
            )])),
        }
    }

    /// The number of batches of an epoch, if it is known before: then a number of epochs has a number of
    /// steps.
    fn batches_per_epoch(&self) -> Option<usize>;

    /// Where the source is.
    ///
    /// # Errors
    /// If the place cannot be written as JSON.
    fn state(&self) -> Result<Value>;

    /// Goes to a place that [`state`](Self::state) gave.
    ///
    /// # Errors
    /// If the place is one of other data. The source is then as it was.
    fn restore(&mut self, state: &Value) -> Result<()>;
}

impl<S: Source + ?Sized> Source for &mut S {
    type Batch = S::Batch;

    fn next_batch(&mut self) -> Result<Option<Self::Batch>> {
        (**self).next_batch()
    }

    fn next_share(&mut self, share: Share) -> Result<Option<Option<Self::Batch>>> {
        (**self).next_share(share)
    }

    fn batches_per_epoch(&self) -> Option<usize> {
        (**self).batches_per_epoch()
    }

    fn state(&self) -> Result<Value> {
        (**self).state()
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        (**self).restore(state)
    }
}

/// Batches of examples in memory: [`Batches`] chooses them, a function makes a batch of their numbers.
///
/// ```
/// use lora::data::BatchOptions;
/// use lora::train::{Examples, Source};
///
/// let data = [1.0, 2.0, 3.0];
/// let mut batches = Examples::new([1; 3], &BatchOptions::new(2).shuffle(false), |numbers| {
///     Ok(numbers.iter().map(|&number| data[number]).collect::<Vec<f64>>())
/// })?;
/// assert_eq!(batches.next_batch()?, Some(vec![1.0, 2.0]));
/// assert_eq!(batches.next_batch()?, Some(vec![3.0]));
/// assert_eq!(batches.next_batch()?, None);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Examples<F> {
    order: Order,
    make: F,
}

impl<T, F: FnMut(&[usize]) -> Result<T>> Examples<F> {
    /// Examples of these lengths, such as numbers of tokens; where all are alike, of 1 each.
    ///
    /// # Errors
    /// Those of [`Batches::new`].
    pub fn new(
        lengths: impl IntoIterator<Item = usize>,
        options: &BatchOptions,
        make: F,
    ) -> Result<Self> {
        Ok(Self {
            order: Order::new(lengths, options)?,
            make,
        })
    }
}

impl<T, F: FnMut(&[usize]) -> Result<T>> Source for Examples<F> {
    type Batch = T;

    fn next_batch(&mut self) -> Result<Option<T>> {
        let numbers = self.order.batches.next_batch();
        numbers.map(|numbers| (self.make)(&numbers)).transpose()
    }

    fn next_share(&mut self, share: Share) -> Result<Option<Option<T>>> {
        let Some(numbers) = self.order.batches.next_batch() else {
            return Ok(None);
        };
        let own = share.of(&numbers);
        let batch = (!own.is_empty()).then(|| (self.make)(&own));
        Ok(Some(batch.transpose()?))
    }

    fn batches_per_epoch(&self) -> Option<usize> {
        Some(self.order.batches.batches_per_epoch())
    }

    fn state(&self) -> Result<Value> {
        self.order.state()
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        self.order.restore(state)
    }
}

/// The batches of examples in memory, by number, and the place in them as a checkpoint holds it.
#[derive(Clone, Debug)]
pub(super) struct Order {
    lengths: Vec<usize>,
    pub(super) batches: Batches,
}

impl Order {
    pub(super) fn new(
        lengths: impl IntoIterator<Item = usize>,
        options: &BatchOptions,
    ) -> Result<Self> {
        let lengths: Vec<usize> = lengths.into_iter().collect();
        let batches = Batches::new(lengths.iter().copied(), options)?;
        Ok(Self { lengths, batches })
    }

    pub(super) fn state(&self) -> Result<Value> {
        value(&self.batches.state())
    }

    pub(super) fn restore(&mut self, state: &Value) -> Result<()> {
        let own = self.state()?;
        if own.get("options") != state.get("options") {
            let shown =
                |state: &Value| state.get("options").map_or("none".into(), Value::to_string);
            return Err(Error::Data(vec![format!(
                "the checkpoint's batches were made with other options: {} then, {} now; set them as they \
                 were, or begin a new run with another output",
                shown(state),
                shown(&own)
            )]));
        }
        let state: BatchState = serde_json::from_value(state.clone()).map_err(|error| {
            Error::Data(vec![format!("the place in the data is damaged: {error}")])
        })?;
        self.batches = Batches::resume(self.lengths.iter().copied(), &state)?;
        Ok(())
    }
}

fn value(state: &BatchState) -> Result<Value> {
    serde_json::to_value(state).map_err(|error| Error::Data(vec![error.to_string()]))
}
