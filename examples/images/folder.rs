//! A folder of images: one subfolder a class, named for it.

use super::decode::{Decoded, decode, has_known_ending};
use super::{Dataset, sheet};
use crate::interrupt;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use walkdir::{DirEntry, WalkDir};

/// The part of each class that is held out where the folder does not say.
pub const HELD_OUT: f64 = 0.25;

/// Names of a folder's parts, where it has some: what to train on, and what to hold out, the first
/// that is there.
const TRAINING: &str = "train";
const HELD_OUT_NAMES: [&str; 4] = ["val", "valid", "validation", "test"];

/// How many files a note names.
const NAMED: usize = 20;

/// What a folder of images holds.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Its images, without those of `held_out`.
    pub images: Dataset,
    /// The images that it keeps apart from those to train on.
    pub held_out: Option<Dataset>,
    /// Whatever is not as it might seem: files that were skipped, images that were changed.
    pub notes: Vec<String>,
}

impl Folder {
    /// The same images with their classes numbered as in `classes`, or `None` if that lacks one.
    pub fn renumbered(&self, classes: &[String]) -> Option<Self> {
        let held_out = match &self.held_out {
            Some(held_out) => Some(held_out.renumbered(classes)?),
            None => None,
        };
        Some(Self {
            images: self.images.renumbered(classes)?,
            held_out,
            notes: self.notes.clone(),
        })
    }

    /// Its images to train on, and those to hold out: the part of each class that is asked for, unless
    /// the folder keeps them apart. Both in colour, if one is.
    pub fn split(self, part: f64) -> (Dataset, Dataset) {
        let (training, held_out) = match self.held_out {
            Some(held_out) => (self.images, held_out),
            None => self.images.split(part),
        };
        let channels = training.channels().max(held_out.channels());
        (training.widened(channels), held_out.widened(channels))
    }
}

/// Reads a folder of images at the given size, in the order of their names. A class has all images
/// of its folder, also those of folders inside. The classes are either in the folder itself, or in
/// two parts of it, `train` and `val`. A folder with a `sheet.json` is read as contact sheets.
///
/// # Errors
/// If there is no such folder, there are fewer than two classes, a class has too few images to train
/// on some and hold out others, or images cannot be decoded; the message names all of them.
pub fn read_folder(dir: &Path, size: usize) -> Result<Folder> {
    if !dir.is_dir() {
        bail!(
            "there is no folder {}: --data wants a folder of images, one subfolder a class",
            dir.display()
        );
    }
    if sheet::is_sheets(dir) {
        return Ok(Folder {
            images: sheet::read_sheets(dir, size)?,
            held_out: None,
            notes: Vec::new(),
        });
    }
    let mut reader = Reader::new(dir, size);
    let (images, held_out) = match parts(dir)? {
        Some((training, held_out)) => {
            let others = reader.subfolders(dir)?.into_iter();
            let others = others.filter(|path| *path != training && *path != held_out);
            reader.skipped.extend(others);
            let images = reader.dataset(&training, 1)?;
            let apart = reader.dataset(&held_out, 1)?;
            let apart = same_classes(&images, apart, &held_out)?;
            reader.parts = Some([name(&training), name(&held_out)]);
            (images, Some(apart))
        }
        None => (reader.dataset(dir, 2)?, None),
    };
    Ok(Folder {
        images,
        held_out,
        notes: reader.finish()?,
    })
}

/// The two parts of a folder that has them: both hold folders, as the classes are.
fn parts(dir: &Path) -> Result<Option<(PathBuf, PathBuf)>> {
    let folders = entries(dir)?.into_iter().filter(|path| path.is_dir());
    let folders: Vec<PathBuf> = folders.collect();
    let part = |wanted: &str| -> Option<PathBuf> {
        let mut folders = folders.iter();
        let found = folders.find(|folder| name(folder).eq_ignore_ascii_case(wanted))?;
        let inside = entries(found).unwrap_or_default();
        inside
            .iter()
            .any(|path| path.is_dir())
            .then(|| found.clone())
    };
    let held_out = HELD_OUT_NAMES.iter().find_map(|name| part(name));
    Ok(part(TRAINING).zip(held_out))
}

/// The held-out images with their classes numbered as those to train on.
fn same_classes(training: &Dataset, held_out: Dataset, dir: &Path) -> Result<Dataset> {
    let missing = |of: &Dataset, from: &Dataset| {
        let names = of
            .classes
            .iter()
            .filter(|name| !from.classes.contains(name));
        names.cloned().collect::<Vec<_>>()
    };
    let (more, fewer) = (missing(&held_out, training), missing(training, &held_out));
    let dir = dir.display();
    if !fewer.is_empty() {
        bail!("folder {dir} lacks a folder for: {}", fewer.join(", "));
    }
    let renumbered = held_out.renumbered(&training.classes);
    renumbered.with_context(|| {
        let more = more.join(", ");
        format!("folder {dir} has folders that `{TRAINING}` beside it lacks: {more}")
    })
}

/// Reads images and notes what it does not read.
struct Reader<'a> {
    root: &'a Path,
    size: usize,
    /// The names of the folder's parts, where it has some.
    parts: Option<[String; 2]>,
    skipped: Vec<PathBuf>,
    transparent: Vec<PathBuf>,
    broken: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(root: &'a Path, size: usize) -> Self {
        Self {
            root,
            size,
            parts: None,
            skipped: Vec::new(),
            transparent: Vec::new(),
            broken: Vec::new(),
        }
    }

    /// The images of a folder of classes, of which each must have at least so many.
    fn dataset(&mut self, dir: &Path, least: usize) -> Result<Dataset> {
        let classes = self.subfolders(dir)?;
        match classes.as_slice() {
            [] => bail!(
                "folder {} has no subfolders: put the images of each class into a subfolder named \
                 for the class",
                dir.display()
            ),
            [only] => bail!(
                "folder {} has one class only, `{}`: there is nothing to tell apart; it needs at \
                 least two subfolders of images. If {} holds the classes, name that",
                dir.display(),
                name(only),
                only.display()
            ),
            _ => {}
        }
        let names = classes.iter().map(|class| name(class)).collect();
        let mut dataset = Dataset::new(names, self.size);
        for (class, folder) in classes.iter().enumerate() {
            let files = self.images(folder)?;
            if files.len() < least {
                let why = match least {
                    1 => "1",
                    _ => "2, one to train on and one to hold out",
                };
                bail!(
                    "class folder {} has {} PNG, JPEG or WebP image(s): it needs at least {why}",
                    folder.display(),
                    files.len()
                );
            }
            for file in files {
                self.read(&mut dataset, class, file)?;
            }
        }
        Ok(dataset)
    }

    fn read(&mut self, dataset: &mut Dataset, class: usize, file: PathBuf) -> Result<()> {
        interrupt::check()?;
        match decode(&file) {
            Ok(Decoded { image, transparent }) => {
                dataset.push(class, &image.fit(self.size));
                self.transparent.extend(transparent.then_some(file));
            }
            Err(error) => self.broken.push(format!("{}: {error:#}", file.display())),
        }
        Ok(())
    }

    /// The folders in a folder of classes, in the order of their names.
    fn subfolders(&mut self, dir: &Path) -> Result<Vec<PathBuf>> {
        let shown = |path: &PathBuf| path.is_dir() && !name(path).starts_with('.');
        let (folders, others): (Vec<_>, Vec<_>) = entries(dir)?.into_iter().partition(shown);
        self.skipped.extend(others);
        Ok(folders)
    }

    /// The image files in a class folder and the folders inside, in the order of their paths.
    fn images(&mut self, class: &Path) -> Result<Vec<PathBuf>> {
        let walk = WalkDir::new(class).min_depth(1).follow_links(true);
        let mut entries = walk.sort_by_file_name().into_iter();
        let mut files = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.with_context(|| format!("cannot read folder {}", class.display()))?;
            let folder = entry.file_type().is_dir();
            if is_hidden(&entry) {
                if folder {
                    entries.skip_current_dir();
                }
                self.skipped.push(entry.into_path());
            } else if entry.file_type().is_file() && has_known_ending(entry.path()) {
                files.push(entry.into_path());
            } else if !folder {
                self.skipped.push(entry.into_path());
            }
        }
        Ok(files)
    }

    /// What a user should know.
    fn finish(self) -> Result<Vec<String>> {
        match self.broken.as_slice() {
            [] => {}
            [one] => bail!("cannot read image {one}"),
            many => bail!(
                "cannot read {} images:\n  {}",
                many.len(),
                many.join("\n  ")
            ),
        }
        let parts = self.parts.iter();
        let parts = parts
            .map(|[training, held_out]| format!("to train on: {training}; held out: {held_out}"));
        let mut notes: Vec<String> = parts.collect();
        let mut add = |paths: &[PathBuf], what: &str| {
            if !paths.is_empty() {
                notes.push(format!("{} {what}: {}", paths.len(), self.names(paths)));
            }
        };
        add(
            &self.skipped,
            "skipped, which are not images (PNG, JPEG, WebP) in the folder of a class",
        );
        add(
            &self.transparent,
            "with transparent parts, which became white",
        );
        Ok(notes)
    }

    /// Names of files, as seen from the root.
    fn names(&self, paths: &[PathBuf]) -> String {
        let shown = paths.iter().take(NAMED);
        let short = shown.map(|path| path.strip_prefix(self.root).unwrap_or(path));
        let mut names: Vec<String> = short.map(|path| path.display().to_string()).collect();
        if paths.len() > NAMED {
            names.push(format!("and {} more", paths.len() - NAMED));
        }
        names.join(", ")
    }
}

/// What is in a folder, in the order of the names.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
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

fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with('.')
}
