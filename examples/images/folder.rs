//! A folder of images: one subfolder a class, named for it.

use super::{Dataset, Image, sheet};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Endings of image files; others are passed over.
const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];

/// Reads a folder of images at the given channels and size, in the order of their names. A folder
/// with a `sheet.json` is read as contact sheets.
///
/// # Errors
/// If there is no such folder, there are fewer than two classes, a class has fewer than two images
/// (one to train on, one to hold out), or an image cannot be decoded; the message names it.
pub fn read_folder(dir: &Path, channels: usize, size: usize) -> Result<Dataset> {
    if !dir.is_dir() {
        bail!(
            "there is no folder {}: --data wants a folder of images, one subfolder a class",
            dir.display()
        );
    }
    if sheet::is_sheets(dir) {
        return sheet::read_sheets(dir, channels, size);
    }
    let classes = sorted(dir)?.into_iter().filter(|path| path.is_dir());
    let classes: Vec<PathBuf> = classes.filter(|path| !is_hidden(path)).collect();
    let names: Vec<String> = classes.iter().map(|class| name(class)).collect();
    if names.is_empty() {
        bail!(
            "folder {} has no subfolders: put the images of each class into a subfolder named for \
             the class",
            dir.display()
        );
    }
    if let [only] = names.as_slice() {
        bail!(
            "folder {} has one class only, `{only}`: there is nothing to tell apart; it needs at \
             least two subfolders of images",
            dir.display()
        );
    }
    let mut dataset = Dataset::new(names, channels, size);
    for (class, folder) in classes.iter().enumerate() {
        let files = sorted(folder)?;
        let files: Vec<_> = files.iter().filter(|file| is_image(file)).collect();
        if files.len() < 2 {
            bail!(
                "class folder {} has {} PNG or JPEG image(s): it needs at least 2, one to train on \
                 and one to hold out",
                folder.display(),
                files.len()
            );
        }
        for file in files {
            dataset.push(class, &Image::open(file, channels)?.fit(size));
        }
    }
    Ok(dataset)
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(dir)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    let mut paths = read().with_context(|| format!("cannot read folder {}", dir.display()))?;
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn is_hidden(path: &Path) -> bool {
    name(path).starts_with('.')
}

fn is_image(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    let known = ENDINGS
        .iter()
        .any(|known| ending.eq_ignore_ascii_case(known));
    known && path.is_file() && !is_hidden(path)
}
