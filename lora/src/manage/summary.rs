//! A table of a model's layers and parameters.

use crate::config::Kind;
use crate::path::join;
use crate::traits::each_layer;
use crate::{LoraModule, Param, Role};
use candle_core::TensorId;
use candle_core::quantized::GgmlDType;
use std::collections::HashMap;
use std::fmt;

/// A model's layers and parameters: a row for each layer, and the totals. Made by
/// [`LoraModule::summary`].
///
/// `{}` prints the table and the totals; [`totals`](Self::totals) is the last line alone. A tied
/// weight is counted once, at its first layer. Later layers with this weight are listed as tied to
/// the first.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// The layers in the order of the walk.
    pub rows: Vec<SummaryRow>,
    /// Number of values in all parameters.
    pub total: usize,
    /// Number of values that are trained.
    pub trainable: usize,
    /// Bytes of all parameters. Those of a quantised weight are its blocks'.
    pub bytes: usize,
}

/// A row of a [`Summary`]: one layer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SummaryRow {
    /// The layer's path.
    pub path: String,
    /// Its kind, for example `Linear`.
    pub kind: Kind,
    /// The shape of its first parameter.
    pub shape: Vec<usize>,
    /// The rank of its active adapter, or else of its first.
    pub rank: Option<usize>,
    /// The smaller side of the weight, if the layer has an adapter. A higher rank makes the adapter
    /// larger, but lets it express no more.
    pub largest_rank: Option<usize>,
    /// Number of values in its parameters, without tied parameters that an earlier layer counts.
    pub total: usize,
    /// Number of its values that are trained, without tied parameters that an earlier layer counts.
    pub trainable: usize,
    /// Bytes of these parameters.
    pub bytes: usize,
    /// The type of its weight's blocks, if the weight is quantised.
    pub quantised: Option<GgmlDType>,
    /// The parameter of an earlier layer that one of this layer's parameters is tied to.
    pub tied_to: Option<String>,
}

impl Summary {
    pub(crate) fn of<M: LoraModule>(model: &M) -> Self {
        let mut seen = HashMap::<TensorId, String>::new();
        let mut rows = Vec::new();
        each_layer(model, |path, layer| {
            let params = layer.params();
            let adapters = layer.adapted().map(|layer| layer.adapters());
            let blocks = adapters.and_then(|adapters| adapters.unmerged_blocks());
            let mut row = SummaryRow {
                path: path.into(),
                kind: layer.kind(),
                shape: params.first().map_or(vec![], |p| p.tensor.dims().into()),
                rank: adapters.and_then(|adapters| {
                    let shown = adapters.active().next().or(adapters.iter().next());
                    Some(shown?.settings.rank)
                }),
                largest_rank: None,
                total: 0,
                trainable: 0,
                bytes: 0,
                quantised: blocks.map(|blocks| blocks.dtype()),
                tied_to: None,
            };
            let largest_rank = layer.adapted().map(|layer| layer.largest_rank());
            row.largest_rank = largest_rank.filter(|_| row.rank.is_some());
            for Param { name, role, tensor } in params {
                // A merged weight is a new tensor. Its original may be tied, so the original
                // counts.
                let original = layer.adapted();
                let original = original
                    .and_then(|layer| layer.adapters().original(&name, layer.weight_name()));
                let tensor = original.unwrap_or(tensor);
                if role == Role::Buffer {
                    continue;
                }
                if let Some(first) = seen.get(&tensor.id()) {
                    row.tied_to = Some(first.clone());
                    continue;
                }
                seen.insert(tensor.id(), join(path, &name));
                row.total += tensor.elem_count();
                let is_weight = layer.adapted().is_some_and(|l| l.weight_name() == name);
                row.bytes += match blocks.filter(|_| is_weight) {
                    Some(blocks) => blocks.storage_size_in_bytes(),
                    None => tensor.elem_count() * tensor.dtype().size_in_bytes(),
                };
                if tensor.is_variable() {
                    row.trainable += tensor.elem_count();
                }
            }
            rows.push(row);
        });
        Self {
            total: rows.iter().map(|row| row.total).sum(),
            trainable: rows.iter().map(|row| row.trainable).sum(),
            bytes: rows.iter().map(|row| row.bytes).sum(),
            rows,
        }
    }

    /// The totals in words: `10 parameters in all, 4 trainable, 6 not`.
    pub fn totals(&self) -> String {
        format!(
            "{} parameters in all, {} trainable, {} not",
            thousands(self.total),
            thousands(self.trainable),
            thousands(self.total - self.trainable)
        )
    }
}

/// How many layers a note names.
const NAMED: usize = 8;

/// Tells of layers whose rank is above the smaller side of their weight: path, rank and that side.
pub(crate) fn oversized(layers: &[(&str, usize, usize)]) -> Option<String> {
    let named = layers.iter().take(NAMED);
    let named = named.map(|(path, rank, largest)| format!("`{path}` ({rank} > {largest})"));
    let mut named: Vec<String> = named.collect();
    if layers.len() > NAMED {
        named.push(format!("and {} more", layers.len() - NAMED));
    }
    (!named.is_empty()).then(|| {
        format!(
            "a rank above the smaller side of a weight makes the adapter larger, but it can express \
             no more: {}",
            named.join(", ")
        )
    })
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = ["layer", "kind", "shape", "rank", "parameters", "trainable"];
        let mut table = vec![header.map(String::from)];
        for row in &self.rows {
            let shape: Vec<String> = row.shape.iter().map(usize::to_string).collect();
            let total = match &row.tied_to {
                Some(first) if row.total == 0 => format!("= {first}"),
                _ => thousands(row.total),
            };
            table.push([
                row.path.clone(),
                match row.quantised {
                    Some(dtype) => format!("{} {dtype:?}", row.kind),
                    None => row.kind.to_string(),
                },
                shape.join("x"),
                row.rank.map_or(String::new(), |rank| rank.to_string()),
                total,
                match row.trainable {
                    0 => "-".into(),
                    trainable => thousands(trainable),
                },
            ]);
        }
        let mut widths = [0; 6];
        for row in &table {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for [path, kind, shape, rank, total, trainable] in &table {
            let [w0, w1, w2, w3, w4, w5] = widths;
            writeln!(
                f,
                "{path:w0$}  {kind:w1$}  {shape:w2$}  {rank:>w3$}  {total:>w4$}  {trainable:>w5$}"
            )?;
        }
        let oversized = self.rows.iter().filter_map(|row| {
            let (rank, largest) = (row.rank?, row.largest_rank?);
            (rank > largest).then_some((row.path.as_str(), rank, largest))
        });
        if let Some(note) = self::oversized(&oversized.collect::<Vec<_>>()) {
            writeln!(f, "note: {note}")?;
        }
        let quantised = self.rows.iter().filter(|row| row.quantised.is_some());
        let count = quantised.count();
        if count > 0 {
            writeln!(
                f,
                "{count} layers are quantised; all parameters take {} bytes",
                thousands(self.bytes)
            )?;
        }
        write!(f, "{}", self.totals())
    }
}

/// A number with commas between its thousands.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn commas_every_three_digits() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (28721608, "28,721,608"),
        ];
        for (number, text) in cases {
            assert_eq!(thousands(number), text);
        }
    }
}
