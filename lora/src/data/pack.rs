//! Several sequences in a row.

use super::sequence::{NO_LABEL, Sequence};
use crate::{Error, Result};
use std::collections::BTreeSet;

/// Puts sequences together into rows of at most `length` tokens, so that little is padded. No sequence is
/// cut: each goes into the fullest row with room, the longest first.
///
/// Each token has the number of its sequence in the row, from 1, as
/// [`Attention::sequences`](crate::ops::Attention::sequences) takes them. The first token of a sequence
/// has no label, as the token before is another sequence's.
///
/// ```
/// use lora::data::{NO_LABEL, Sequence, pack};
///
/// let sequences = vec![
///     Sequence::new(vec![1, 2, 3]),
///     Sequence::new(vec![4, 5, 6]),
///     Sequence::new(vec![7, 8]),
/// ];
/// let rows = pack(&sequences, 5)?;
/// assert_eq!(rows[0].ids, [1, 2, 3, 7, 8]);
/// assert_eq!(rows[0].numbers, [1, 1, 1, 2, 2]);
/// assert_eq!(rows[0].labels, [NO_LABEL, 2, 3, NO_LABEL, 8]);
/// assert_eq!(rows[1].ids, [4, 5, 6]);
/// # Ok::<(), lora::Error>(())
/// ```
///
/// # Errors
/// [`Error::Data`] names a sequence that is longer than a row.
pub fn pack(sequences: &[Sequence], length: usize) -> Result<Vec<Sequence>> {
    let lengths = sequences.iter().map(Sequence::len).enumerate();
    if let Some((index, found)) = lengths.clone().find(|&(_, found)| found > length) {
        return Err(Error::Data(vec![format!(
            "sequence {index} has {found} tokens, a row has {length}: cut the sequence, or make rows longer"
        )]));
    }
    let mut order: Vec<(usize, usize)> = lengths.filter(|&(_, length)| length > 0).collect();
    order.sort_by_key(|&(index, length)| (std::cmp::Reverse(length), index));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // The rows by what room they have; of equal ones, the first.
    let mut room: BTreeSet<(usize, usize)> = BTreeSet::new();
    for (index, needed) in order {
        let fitting = room.range((needed, 0)..).next().copied();
        let (left, row) = fitting.unwrap_or((length, rows.len()));
        match room.remove(&(left, row)) {
            true => rows[row].push(index),
            false => rows.push(vec![index]),
        }
        room.insert((left - needed, row));
    }
    Ok(rows.into_iter().map(|row| join(sequences, row)).collect())
}

fn join(sequences: &[Sequence], row: Vec<usize>) -> Sequence {
    let mut joined = Sequence::default();
    let parts = row.into_iter().map(|index| &sequences[index]);
    for (number, part) in (1..).zip(parts) {
        joined.ids.extend(&part.ids);
        joined.labels.push(NO_LABEL);
        joined.labels.extend(&part.labels[1..]);
        joined.numbers.extend(vec![number; part.len()]);
    }
    joined
}
