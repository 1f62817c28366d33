//! A heat map of a number for each module of each layer, in Unicode blocks.

use crate::shell::table::number;
use std::io::{self, IsTerminal};

/// From little to much.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The same in colours of a terminal, from blue to red.
const COLOURS: [u8; 8] = [17, 19, 26, 37, 71, 178, 208, 196];

/// The part of a name up to its last number that something follows, and the rest:
/// `model.layers.3` and `mlp.up_proj`.
fn taken_apart(name: &str) -> (&str, &str) {
    let dot = if name.contains('.') { '.' } else { '_' };
    let (mut start, mut found) = (0, None);
    for segment in name.split(dot) {
        let end = start + segment.len();
        let is_number = !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit());
        if is_number && end < name.len() {
            // A list inside of a module, such as to_out.0, belongs to the module.
            found = Some(end);
        }
        start = end + 1;
    }
    match found {
        Some(end) => (&name[..end], &name[end + 1..]),
        None => ("", name),
    }
}

/// The lines of a map: a row for each module, a column for each layer, in their order.
pub fn lines(values: &[(&str, Option<f64>)]) -> Vec<String> {
    let coloured =
        io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    drawn(values, coloured)
}

fn drawn(values: &[(&str, Option<f64>)], coloured: bool) -> Vec<String> {
    let (mut layers, mut modules): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for (name, _) in values {
        let (layer, module) = taken_apart(name);
        if !layers.contains(&layer) {
            layers.push(layer);
        }
        if !modules.contains(&module) {
            modules.push(module);
        }
    }
    let most = values
        .iter()
        .filter_map(|(_, value)| *value)
        .fold(0.0, f64::max);
    let width = modules.iter().map(|module| module.chars().count()).max();
    let width = width.unwrap_or(0);
    let mut lines = Vec::new();
    for module in &modules {
        let cells = layers.iter().map(|layer| {
            let mut cells = values.iter();
            let cell = cells.find(|(name, _)| taken_apart(name) == (*layer, *module));
            match cell {
                None => " ".into(),
                Some((_, None)) => "?".into(),
                Some((_, Some(value))) => block(*value, most, coloured),
            }
        });
        let cells: String = cells.collect();
        lines.push(format!("{module:<width$}  {cells}").trim_end().to_string());
    }
    // Modules outside of any layer have a column, and no name for it.
    let named: Vec<&str> = layers
        .iter()
        .copied()
        .filter(|name| !name.is_empty())
        .collect();
    let ends = match named.as_slice() {
        [first, .., last] => format!("from {first} to {last}; "),
        [one] => format!("{one}; "),
        [] => String::new(),
    };
    lines.push(format!("{:<width$}  {ends}█ is {}", "", number(most)));
    lines
}

fn block(value: f64, most: f64, coloured: bool) -> String {
    if value == 0.0 {
        return "·".into();
    }
    // Rounding must not lift a value by a block.
    let level = (value / most * 8.0 - 1e-6).ceil() as usize;
    let level = level.clamp(1, 8) - 1;
    let block = BLOCKS[level];
    match coloured {
        true => format!("\x1b[38;5;{}m{block}\x1b[0m", COLOURS[level]),
        false => block.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_behind_their_last_number() {
        for (name, layer, module) in [
            (
                "model.layers.3.mlp.up_proj",
                "model.layers.3",
                "mlp.up_proj",
            ),
            ("stages.2.blocks.0.fc1", "stages.2.blocks.0", "fc1"),
            ("down.1.attn.to_out.0", "down.1", "attn.to_out.0"),
            ("lora_unet_blocks_1_to_q", "lora_unet_blocks_1", "to_q"),
            ("head", "", "head"),
        ] {
            assert_eq!(taken_apart(name), (layer, module));
        }
    }

    #[test]
    fn a_map_by_hand() {
        let values = [
            ("h.0.q", Some(1.0)),
            ("h.1.q", Some(8.0)),
            ("h.0.fc", Some(0.0)),
            ("h.2.fc", None),
        ];
        let lines = drawn(&values, false);
        assert_eq!(lines, ["q   ▁█", "fc  · ?", "    from h.0 to h.2; █ is 8"]);
        assert!(drawn(&values, true)[0].contains("\x1b[38;5;196m█"));
    }
}
