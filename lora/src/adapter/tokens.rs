//! [`Tokens`]: rows of a vocabulary that are trained, PEFT's `trainable_token_indices`.

use super::{Parked, Tie};
use crate::init::adapter_dtype;
use crate::ops;
use crate::{Error, Result};
use candle_core::{D, DType, Device, Tensor, Var};

/// Rows that an adapter trains, of an embedding's table or of the weight of a linear layer with an
/// output for each token. They stand in place of the base's rows. A head that shares an embedding's
/// table shares the trained rows.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub(crate) adapter: String,
    /// The indices of the rows, each once.
    pub(crate) ids: Vec<u32>,
    /// The values of the rows, (ids, dim).
    pub(crate) rows: Tensor,
    /// For each row of the table, its place in `rows` from 1, or 0: (n).
    slots: Tensor,
    /// Whose rows they are: an embedding's own, or those that a head sees of it.
    tie: Tie,
    parked: Parked,
}

impl Tokens {
    /// Rows that start with the table's values.
    pub(crate) fn new(path: &str, adapter: &str, ids: &[u32], table: &Tensor) -> Result<Self> {
        let count = table.dim(0)?;
        let mut slots = vec![0u32; count];
        let mut problems = Vec::new();
        for (place, &id) in ids.iter().enumerate() {
            match slots.get_mut(id as usize) {
                None => problems.push(format!("there is no row {id} of {count}")),
                Some(slot) if *slot > 0 => problems.push(format!("row {id} is named twice")),
                Some(slot) => *slot = place as u32 + 1,
            }
        }
        if ids.is_empty() {
            problems.push("no row is named".into());
        }
        if !problems.is_empty() {
            let message = format!("trainable_token_indices: {}", problems.join(", "));
            return Err(Error::layer(path, message));
        }
        let device = table.device();
        let index = Tensor::new(ids, &Device::Cpu)?.to_device(device)?;
        let rows = table.detach().index_select(&index, 0)?;
        let rows = rows.to_dtype(adapter_dtype(table.dtype()))?;
        Ok(Self {
            adapter: adapter.into(),
            ids: ids.to_vec(),
            rows: Var::from_tensor(&rows)?.into_inner(),
            slots: Tensor::new(slots, &Device::Cpu)?.to_device(device)?,
            tie: Tie::None,
            parked: Parked::default(),
        })
    }

    /// The adapter that trains the rows.
    pub fn adapter(&self) -> &str {
        &self.adapter
    }

    /// The indices of the rows, in the order of [`rows`](Self::rows).
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The trained rows, (ids, dim): the values themselves, not differences from the base's rows.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// True if the rows are those of the embedding whose weight the layer shares.
    pub fn is_shared(&self) -> bool {
        self.tie == Tie::Shared
    }

    /// The same rows, for a head that shares the embedding's weight.
    pub(crate) fn shared(&self) -> Self {
        Self {
            tie: Tie::Shared,
            ..self.clone()
        }
    }

    /// The same indices with other values.
    pub(crate) fn with_rows(&self, rows: Tensor) -> Self {
        Self {
            rows,
            ..self.clone()
        }
    }

    pub(crate) fn set_trainable(&mut self, trainable: bool) -> Result<()> {
        self.parked.set_trainable(0, &mut self.rows, trainable)
    }

    /// Moves the table of places to the rows' device, after the rows were moved.
    pub(crate) fn follow_rows(&mut self) -> Result<()> {
        self.parked = Parked::default();
        self.slots = self.slots.to_device(self.rows.device())?;
        Ok(())
    }

    /// The same rows without their graph.
    pub(crate) fn detached(&self) -> Self {
        self.with_rows(self.rows.detach())
    }

    /// The table with the trained rows in it: (n, dim).
    pub(crate) fn put_into(&self, table: &Tensor) -> candle_core::Result<Tensor> {
        let rows = self.rows.to_dtype(table.dtype())?;
        let mask = self
            .slots
            .gt(0u32)?
            .unsqueeze(1)?
            .broadcast_as(table.shape())?;
        mask.where_cond(&self.by_slot(&rows, &self.slots)?, table)
    }

    /// The result of a lookup, `ys` (ids.., dim), with the trained rows in place of the base's
    /// rows.
    pub(crate) fn after_lookup(&self, ids: &Tensor, ys: &Tensor) -> candle_core::Result<Tensor> {
        let flat = ids.flatten_all()?;
        // Candle reads the largest index of a dtype as "no row": in u8 that would be row 255.
        let flat = match flat.dtype() {
            DType::U32 | DType::I64 => flat,
            _ => flat.to_dtype(DType::I64)?,
        };
        let slots = self.slots.index_select(&flat, 0)?;
        let rows = self.by_slot(&self.rows.to_dtype(ys.dtype())?, &slots)?;
        let mut shape = ids.dims().to_vec();
        shape.push(1);
        let mask = slots.gt(0u32)?.reshape(shape)?.broadcast_as(ys.shape())?;
        mask.where_cond(&rows.reshape(ys.shape())?, ys)
    }

    /// The result of a head that shares the table, `ys` (.., n) for `xs` (.., dim), with the
    /// trained rows in place of the base's rows.
    pub(crate) fn after_head(&self, xs: &Tensor, ys: &Tensor) -> candle_core::Result<Tensor> {
        let scores = ops::linear(xs, &self.rows.to_dtype(xs.dtype())?, None)?;
        let none = scores.narrow(D::Minus1, 0, 1)?.zeros_like()?;
        let scores = Tensor::cat(&[&none, &scores], D::Minus1)?;
        let scores = scores.contiguous()?;
        let scores = scores.index_select(&self.slots, scores.rank() - 1)?;
        let mask = self.slots.gt(0u32)?.broadcast_as(ys.shape())?;
        mask.where_cond(&scores, ys)
    }

    /// The row of each slot, zeros for slot 0: (slots, dim).
    fn by_slot(&self, rows: &Tensor, slots: &Tensor) -> candle_core::Result<Tensor> {
        let none = rows.narrow(0, 0, 1)?.zeros_like()?;
        ops::embedding(slots, &Tensor::cat(&[&none, rows], 0)?)
    }
}
