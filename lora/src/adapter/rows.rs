//! Mixed batches: each row has its own adapter.

use super::{Adapted, Adapters, copies};
use crate::Layer;
use crate::adapter::AdaptedMut;
use candle_core::{Device, Module, Result, Tensor, bail};

/// Which rows of a batch go to which adapter.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    /// The adapter (`None` for the base alone) and its rows.
    groups: Vec<(Option<String>, Vec<u32>)>,
}

impl Rows {
    pub(crate) fn new(names: &[Option<&str>]) -> Self {
        let mut groups: Vec<(Option<String>, Vec<u32>)> = Vec::new();
        for (row, name) in names.iter().enumerate() {
            let row = row as u32;
            match groups
                .iter_mut()
                .find(|(known, _)| known.as_deref() == *name)
            {
                Some((_, rows)) => rows.push(row),
                None => groups.push((name.map(String::from), vec![row])),
            }
        }
        Self { groups }
    }

    /// True if some row's adapter changes what the layer computes, so that the rows have no weight in
    /// common.
    pub(crate) fn touch(&self, adapters: &Adapters) -> bool {
        let mut names = self.groups.iter().filter_map(|(name, _)| name.as_deref());
        adapters.copies.current().is_some()
            || names.any(|name| adapters.has(name) || adapters.copies.has(name))
    }

    /// A layer for each group of rows, in which only the group's adapter is active.
    pub(crate) fn layers<L: Adapted + Clone>(&self, layer: &L) -> Result<Vec<(Vec<u32>, L)>> {
        let alone = |(name, rows): &(Option<String>, Vec<u32>)| {
            let mut alone = layer.clone();
            let adapters = alone.adapters_mut();
            adapters.rows = None;
            adapters.active = name.iter().cloned().collect();
            copies::switch(&mut alone as &mut dyn Layer, name.as_deref())?;
            Ok((rows.clone(), alone))
        };
        self.groups.iter().map(alone).collect()
    }

    /// The layer's output, each row computed with its own adapter.
    pub(crate) fn forward<L: Adapted + Module + Clone>(
        &self,
        layer: &L,
        xs: &Tensor,
    ) -> Result<Tensor> {
        by_rows(xs, &self.layers(layer)?, |layer, xs| layer.forward(xs))
    }
}

/// Runs `f` once for each group, on the group's rows, and puts the results into the batch's order.
pub(crate) fn by_rows<L>(
    xs: &Tensor,
    groups: &[(Vec<u32>, L)],
    f: impl Fn(&L, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let count: usize = groups.iter().map(|(rows, _)| rows.len()).sum();
    if xs.dims().first() != Some(&count) {
        bail!(
            "lora: an input of shape {:?} in a mixed batch of {count} rows, each with an adapter of \
             its own: every adapted layer must see the batch as its first dimension",
            xs.dims()
        );
    }
    // candle selects rows of contiguous tensors alone.
    let xs = xs.contiguous()?;
    // One call for each group, not for each row: products of many rows are faster.
    let mut parts = Vec::new();
    let mut places = vec![0u32; count];
    let mut place = 0;
    for (rows, layer) in groups {
        let index = Tensor::new(&rows[..], &Device::Cpu)?.to_device(xs.device())?;
        parts.push(f(layer, &xs.index_select(&index, 0)?)?);
        for &row in rows {
            places[row as usize] = place;
            place += 1;
        }
    }
    let places = Tensor::new(&places[..], &Device::Cpu)?.to_device(xs.device())?;
    Tensor::cat(&parts, 0)?.index_select(&places, 0)
}
