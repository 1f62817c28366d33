//! A folder of images: one subfolder a class, named for it.

use super::Dataset;
use super::decode::{Decoded, decode, has_known_ending};
use crate::{Error, Result};
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
/// two parts of it, `train` and `val` (also `valid`, `validation` or `test`).
///
/// # Errors
/// [`Error::File`] if there is no such folder, there are fewer than two classes, a class has too few
/// images to train on some and hold out others, or images cannot be decoded; it names all of them.
pub fn read_folder(dir: impl AsRef<Path>, size: usize) -> Result<Folder> {
    read_folder_with(dir, size, || Ok(()))
}

/// As [`read_folder`], but asks `goes_on` before each image. Its error ends the reading: a program
/// that somebody wants to stop gives one.
///
/// # Errors
/// Those of [`read_folder`] and of `goes_on`.
pub fn read_folder_with<E: From<Error>>(
    dir: impl AsRef<Path>,
    size: usize,
    mut goes_on: impl FnMut() -> Result<(), E>,
) -> Result<Folder, E> {
    let dir = dir.as_ref();
    if !dir.is_dir() {
        let problem = "there is no such folder: a folder of images with a subfolder for each class is expected";
        return Err(Error::file(dir, problem).into());
    }
    let mut listed = Listed::new(dir);
    let (images, held_out) = match parts(dir)? {
        Some((training, held_out)) => {
            let others = listed.subfolders(dir)?.into_iter();
            let others = others.filter(|path| *path != training && *path != held_out);
            listed.skipped.extend(others);
            let classes = listed.classes(&training, 1)?;
            let apart = listed.classes(&held_out, 1)?;
            same_classes(&classes, &apart, &held_out)?;
            listed.parts = Some([name(&training), name(&held_out)]);
            (classes, Some(apart))
        }
        None => (listed.classes(dir, 2)?, None),
    };
    let mut reader = Reader {
        size,
        transparent: Vec::new(),
        broken: Vec::new(),
        goes_on: &mut goes_on,
    };
    let images = reader.dataset(images)?;
    let held_out = match held_out {
        Some(held_out) => Some(reader.dataset(held_out)?),
        None => None,
    };
    let Reader {
        transparent,
        broken,
        ..
    } = reader;
    if !broken.is_empty() {
        return Err(Error::File {
            path: dir.into(),
            problems: broken,
        }
        .into());
    }
    Ok(Folder {
        images,
        held_out,
        notes: listed.notes(&transparent),
    })
}

/// A class and its image files.
struct Class {
    name: String,
    files: Vec<PathBuf>,
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

/// Checks that the held-out images in `dir` have the classes of those to train on.
fn same_classes(training: &[Class], held_out: &[Class], dir: &Path) -> Result<()> {
    let missing = |of: &[Class], from: &[Class]| {
        let is_there = |class: &&Class| from.iter().any(|other| other.name == class.name);
        let names = of.iter().filter(|class| !is_there(class));
        let names: Vec<&str> = names.map(|class| class.name.as_str()).collect();
        names.join(", ")
    };
    let (more, fewer) = (missing(held_out, training), missing(training, held_out));
    let mut problems = Vec::new();
    if !fewer.is_empty() {
        problems.push(format!("lacks a folder for: {fewer}"));
    }
    if !more.is_empty() {
        problems.push(format!(
            "has folders that `{TRAINING}` beside it lacks: {more}"
        ));
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::File {
            path: dir.into(),
            problems,
        }),
    }
}

/// Finds images, and notes what is none.
struct Listed<'a> {
    root: &'a Path,
    /// The names of the folder's parts, where it has some.
    parts: Option<[String; 2]>,
    skipped: Vec<PathBuf>,
}

impl<'a> Listed<'a> {
    fn new(root: &'a Path) -> Self {
        Self {
            root,
            parts: None,
            skipped: Vec::new(),
        }
    }

    /// The classes in a folder, of which each must have at least so many images.
    fn classes(&mut self, dir: &Path, least: usize) -> Result<Vec<Class>> {
        let folders = self.subfolders(dir)?;
        match folders.as_slice() {
            [] => {
                let problem = "has no subfolders: put the images of each class into a subfolder named for \
                               the class";
                return Err(Error::file(dir, problem));
            }
            [only] => {
                let problem = format!(
                    "has one class only, `{}`: there is nothing to tell apart; it needs at least two \
                     subfolders of images. If {} holds the classes, name that",
                    name(only),
                    only.display()
                );
                return Err(Error::file(dir, problem));
            }
            _ => {}
        }
        let mut classes = Vec::new();
        for folder in folders {
            let files = self.images(&folder)?;
            if files.len() < least {
                let why = match least {
                    1 => "1",
                    _ => "2, one to train on and one to hold out",
                };
                let count = files.len();
                let problem =
                    format!("has {count} PNG, JPEG or WebP image(s): a class needs at least {why}");
                return Err(Error::file(folder, problem));
            }
            let name = name(&folder);
            classes.push(Class { name, files });
        }
        Ok(classes)
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
            let entry = entry.map_err(|error| Error::file(class, error))?;
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
    fn notes(self, transparent: &[PathBuf]) -> Vec<String> {
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
        add(transparent, "with transparent parts, which became white");
        notes
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

/// Reads images.
struct Reader<'a, E> {
    size: usize,
    transparent: Vec<PathBuf>,
    broken: Vec<String>,
    goes_on: &'a mut dyn FnMut() -> Result<(), E>,
}

impl<E> Reader<'_, E> {
    fn dataset(&mut self, classes: Vec<Class>) -> Result<Dataset, E> {
        let names = classes.iter().map(|class| class.name.clone());
        let mut dataset = Dataset::new(names.collect(), self.size);
        for (number, class) in classes.into_iter().enumerate() {
            for file in class.files {
                (self.goes_on)()?;
                match decode(&file) {
                    Ok(Decoded { image, transparent }) => {
                        dataset.push(number, &image.fit(self.size));
                        self.transparent.extend(transparent.then_some(file));
                    }
                    Err(problem) => {
                        let file = file.display();
                        self.broken
                            .push(format!("cannot read image {file}: {problem}"));
                    }
                }
            }
        }
        Ok(dataset)
    }
}

/// What is in a folder, in the order of the names.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(dir)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    let mut paths = read().map_err(|error| Error::file(dir, error))?;
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
