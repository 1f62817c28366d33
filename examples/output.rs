//! Output that is written whole or not at all, and replaces only what this program wrote.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder for results. They are made in a hidden folder inside it, and put into place together
/// by [`publish`](Self::publish). Without that they are gone when this is dropped.
#[derive(Debug)]
pub struct Output {
    dir: PathBuf,
    /// Lists what a run wrote into the folder: a checksum for each file, so that a file that somebody
    /// changed or put there is known as theirs.
    manifest: String,
    files: &'static [&'static str],
    staging: TempDir,
    /// Behind `staging`: it is dropped later, when the folders are empty.
    made: Made,
}

/// Folders that were made, the innermost first. Those that are empty go when this is dropped.
#[derive(Debug, Default)]
struct Made(Vec<PathBuf>);

impl Output {
    /// Makes the folder and checks that the files can be put there. `NAME.json`, by the program's name,
    /// will list them.
    ///
    /// # Errors
    /// If the folder cannot be made or written to, or something else than an earlier run's file
    /// stands in the place of a file.
    pub fn new(dir: &Path, program: &str, files: &'static [&'static str]) -> Result<Self> {
        let mut made = Made::default();
        let staging = made.folder(dir).and_then(|()| {
            let mut builder = tempfile::Builder::new();
            builder.prefix(&format!(".{program}-")).tempdir_in(dir)
        });
        let staging =
            staging.with_context(|| format!("cannot write to output folder {}", dir.display()))?;
        let output = Self {
            dir: dir.into(),
            manifest: format!("{program}.json"),
            files,
            staging,
            made,
        };
        output.check_places()?;
        Ok(output)
    }

    /// Where to make a result.
    pub fn draft(&self, name: &str) -> PathBuf {
        self.staging.path().join(name)
    }

    /// Puts the files into place of earlier ones, all of them or none, and returns where they are:
    /// folders in place of what is in them.
    ///
    /// # Errors
    /// If a file cannot be moved, or something has come into its place; the earlier ones are then
    /// back.
    pub fn publish(mut self) -> Result<Vec<PathBuf>> {
        let sums = self.files.iter().map(|name| {
            let sum = checksum(&self.draft(name));
            Ok((
                name.to_string(),
                sum.with_context(|| format!("no {name} was made"))?,
            ))
        });
        let manifest = sums.collect::<Result<BTreeMap<String, u32>>>()?;
        fs::write(
            self.draft(&self.manifest),
            serde_json::to_string_pretty(&manifest)? + "\n",
        )?;
        self.check_places()?;

        let mut done = Vec::<(PathBuf, PathBuf)>::new();
        let list = self.manifest.clone();
        for name in self.files.iter().copied().chain([list.as_str()]) {
            let place = self.dir.join(name);
            let earlier = self.draft("earlier").join(name);
            if let Err(error) = self.replace(name, &place, &earlier) {
                for (place, earlier) in done.iter().rev() {
                    restore(place, earlier);
                }
                return Err(error)
                    .with_context(|| format!("cannot put {} into place", place.display()));
            }
            done.push((place, earlier));
        }
        self.made.0.clear();
        let mut saved: Vec<PathBuf> = Vec::new();
        for name in self.files {
            let first = name.split('/').next().unwrap_or(name);
            let place = self.dir.join(first);
            if !saved.contains(&place) {
                saved.push(place);
            }
        }
        Ok(saved)
    }

    /// Checks that each file's place is free, or taken by what an earlier run wrote.
    fn check_places(&self) -> Result<()> {
        let path = self.dir.join(&self.manifest);
        let known = match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).ok(),
            Err(error) if error.kind() == ErrorKind::NotFound => Some(BTreeMap::new()),
            Err(_) => None,
        };
        let stands = |path: &Path, why: &str| -> Result<()> {
            bail!(
                "{} stands where a result goes, and {why}: move it, or choose another --output",
                path.display()
            )
        };
        let Some(known): Option<BTreeMap<String, u32>> = known else {
            return stands(&path, "it is not the list that this program writes");
        };
        for name in self.files {
            let place = self.dir.join(name);
            match place.symlink_metadata() {
                Ok(found) if !found.is_file() => stands(&place, "it is not a file")?,
                Ok(_) if known.get(*name).copied() != checksum(&place).ok() => {
                    stands(&place, "it is not as an earlier run wrote it")?;
                }
                Err(error) if error.kind() == ErrorKind::NotADirectory => {
                    stands(place.parent().unwrap_or(&place), "it is not a folder")?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn replace(&mut self, name: &str, place: &Path, earlier: &Path) -> std::io::Result<()> {
        for folder in [place.parent(), earlier.parent()].into_iter().flatten() {
            self.made.folder(folder)?;
        }
        let exists = place.symlink_metadata().is_ok();
        if exists {
            fs::rename(place, earlier)?;
        }
        let moved = fs::rename(self.draft(name), place);
        if moved.is_err() && exists {
            restore(place, earlier);
        }
        moved
    }
}

/// Takes a result away again and puts the earlier one back. Nothing more can be done on failure.
fn restore(place: &Path, earlier: &Path) {
    let _ = fs::remove_file(place);
    if earlier.symlink_metadata().is_ok() {
        let _ = fs::rename(earlier, place);
    }
}

/// The checksum of a file's bytes.
fn checksum(path: &Path) -> std::io::Result<u32> {
    Ok(crc32fast::hash(&fs::read(path)?))
}

impl Made {
    /// Makes a folder and those above that are missing.
    fn folder(&mut self, dir: &Path) -> std::io::Result<()> {
        let above = dir.ancestors().filter(|dir| !dir.as_os_str().is_empty());
        let missing = above.take_while(|dir| !dir.exists());
        let missing: Vec<_> = missing.map(Path::to_path_buf).collect();
        self.0.splice(0..0, missing);
        fs::create_dir_all(dir)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for dir in &self.0 {
            // One that is in use by now stays.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Writes the names of the classes beside an adapter, in the order of its head's logits. `lora classify`
/// reads them there.
///
/// # Errors
/// If the file cannot be written.
pub fn write_classes(adapter: &Path, classes: &[String]) -> Result<()> {
    let path = adapter.join("classes.json");
    let names = serde_json::to_string_pretty(classes)? + "\n";
    fs::write(&path, names).with_context(|| format!("cannot write {}", path.display()))
}

/// Bytes in a file, or in the files of a folder.
///
/// # Errors
/// If it cannot be read.
pub fn size_on_disk(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path)?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    let mut size = 0;
    for entry in fs::read_dir(path)? {
        size += size_on_disk(&entry?.path())?;
    }
    Ok(size)
}
