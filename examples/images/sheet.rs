//! Contact sheets: one picture a class, cut into tiles. `data/README.md` describes them.

use super::{Dataset, Image};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::Path;

/// `sheet.json`.
#[derive(Deserialize)]
struct Sheet {
    tile: usize,
    columns: usize,
    counts: Vec<usize>,
}

/// True if the folder holds contact sheets.
pub(super) fn is_sheets(dir: &Path) -> bool {
    dir.join("sheet.json").is_file()
}

/// Reads a folder of contact sheets. Class `i` is called `i`.
///
/// # Errors
/// Names the file that is missing, damaged or too small for what `sheet.json` says.
pub fn read_sheets(dir: &Path, size: usize) -> Result<Dataset> {
    let path = dir.join("sheet.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let sheet: Sheet =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    if sheet.tile == 0 || sheet.columns == 0 {
        bail!("{}: tile and columns must not be 0", path.display());
    }
    let classes = (0..sheet.counts.len()).map(|class| class.to_string());
    let mut dataset = Dataset::new(classes.collect(), size);
    for (class, &count) in sheet.counts.iter().enumerate() {
        let path = dir.join(format!("{class}.png"));
        let image = Image::open(&path)?;
        for index in 0..count {
            let x = sheet.tile * (index % sheet.columns);
            let y = sheet.tile * (index / sheet.columns);
            let tile = image
                .crop(x, y, sheet.tile, sheet.tile)
                .with_context(|| format!("{} lacks tile {index}", path.display()))?;
            dataset.push(class, &tile.resize(size, size));
        }
    }
    Ok(dataset)
}
