//! Images and labels: folders as the library reads them, and contact sheets.

mod sheet;

pub use lora::images::{Batch, Dataset, Folder, HELD_OUT, Image, Input, augment};
pub use sheet::read_sheets;

use crate::interrupt;
use anyhow::{Context, Result};
use lora::images::read_folder_with;
use std::path::Path;

/// Reads a folder of images at the given size, or one of contact sheets, which has a `sheet.json`.
///
/// # Errors
/// Those of [`lora::images::read_folder`], damaged sheets, and if somebody stops the program.
pub fn read_folder(dir: &Path, size: usize) -> Result<Folder> {
    if sheet::is_sheets(dir) {
        return Ok(Folder {
            images: sheet::read_sheets(dir, size)?,
            held_out: None,
            notes: Vec::new(),
        });
    }
    read_folder_with(dir, size, interrupt::check).context("cannot use --data")
}
