//! Training data: records of a JSONL file, tokens with labels, batches.
//!
//! ```
//! use lora::data::{BatchOptions, Batches, Pad, Sequence, split};
//! use candle_core::Device;
//!
//! // Tokens, of which the model learns all, or only those behind a prompt.
//! let sequences = vec![
//!     Sequence::new(vec![5, 8, 2]),
//!     Sequence::new(vec![7, 1, 1, 4, 2]).without_loss(0..3),
//!     Sequence::new(vec![9, 2]),
//! ];
//! let (train, held_out) = split(sequences, 0.34, 0)?;
//! assert_eq!((train.len(), held_out.len()), (2, 1));
//!
//! // Batches of sequences whose lengths are alike, in an order that the seed decides.
//! let mut batches = Batches::new(train.iter().map(Sequence::len), &BatchOptions::new(2).seed(1))?;
//! for _epoch in 0..2 {
//!     while let Some(indices) = batches.next_batch() {
//!         let rows: Vec<&Sequence> = indices.iter().map(|&index| &train[index]).collect();
//!         let batch = Pad::new(0).sequences(&rows, &Device::Cpu)?;
//!         assert_eq!(batch.ids.dims(), batch.labels.dims());
//!     }
//! }
//! # Ok::<(), lora::Error>(())
//! ```
//!
//! - Files: [`read_jsonl`] reads records: [`Record`] for language models, [`Labelled`], [`Pair`], or a type
//!   of your own; [`DataKind`] is which of these a file holds. [`Classes`] numbers labels.
//! - Tokens with labels: [`Sequence`]; [`sequences`] makes them of records, [`read_sequences`] of a file.
//! - Batches: [`Batches`] chooses, [`Pad`] makes tensors. [`Batches::state`] goes into a file, and training
//!   goes on in the middle of an epoch.
//! - Several sequences in a row: [`pack`]. Data that is held out: [`split`].

mod batches;
mod classes;
mod kind;
mod message;
mod pack;
mod pad;
mod records;
mod sequence;
mod split;
mod tokenize;

pub use batches::{BatchOptions, BatchState, Batches};
pub use classes::Classes;
pub use kind::DataKind;
pub use message::{Chat, Message};
pub use pack::pack;
pub use pad::{Batch, Pad, Side, Tokens};
pub use records::{Label, Labelled, Pair, Record, read_jsonl};
pub use sequence::{NO_LABEL, Sequence};
pub use split::split;
pub use tokenize::{Rendered, SequenceOptions, Tokenize, Tokenized, read_sequences, sequences};
