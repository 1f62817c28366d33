//! Replacing the two files of a directory such that a crash at any moment leaves an adapter.

use super::{CONFIG_FILE, WEIGHTS_FILE};
use crate::file::{stage, sync, temporary};
use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The folder that holds both new files while they replace those of the directory.
const NEW: &str = ".adapter-new";

/// The old configuration in that folder: once it is there, the new files count. On a first save it
/// is empty.
const OLD_CONFIG: &str = "old_config.json";

/// Where a file of the directory's adapter is: in the directory itself, or in the folder of new
/// files if a save was cut off.
pub(super) fn place(dir: &Path, file: &str) -> PathBuf {
    match is_cut_off(dir) {
        true => dir.join(NEW).join(file),
        false => dir.join(file),
    }
}

/// True if a save took effect and its files are still in their folder.
fn is_cut_off(dir: &Path) -> bool {
    let new = dir.join(NEW);
    !dir.join(CONFIG_FILE).exists()
        && new.join(OLD_CONFIG).exists()
        && new.join(CONFIG_FILE).exists()
}

/// Writes both files, or changes nothing.
///
/// Two files cannot be replaced in one step. So this is the order:
///
/// 1. Both new files are written to a folder in the directory and flushed to the disk.
/// 2. The folder gets its name, `.adapter-new`.
/// 3. The old configuration is moved into the folder. From this moment the new files count.
/// 4. The weights are linked or copied up.
/// 5. The configuration is moved up. Until this last step the folder is whole.
///
/// Between 3 and 5, a reader that does not know the folder finds no configuration instead of a
/// mixture. The next save finishes a save that was cut off there. If the old configuration has the
/// same bytes, it stays, and the weights are replaced in one step.
///
/// A process that is killed before step 3 leaves the old files as they were, and a temporary file
/// or folder whose name begins with `.adapter-`.
pub(super) fn write(dir: &Path, config: &[u8], weights: &[u8]) -> Result<()> {
    replace(dir, config, weights)
        .map_err(|error| Error::file(dir, format!("cannot be written: {error}")))
}

fn replace(dir: &Path, config: &[u8], weights: &[u8]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    // A save that was cut off holds the folder's name, and may hold the only whole pair.
    finish(dir)?;
    let (config_path, weights_path) = (dir.join(CONFIG_FILE), dir.join(WEIGHTS_FILE));
    if fs::read(&config_path).is_ok_and(|old| old == config) {
        stage(dir, weights)?.persist(&weights_path)?;
    } else {
        // No file can be renamed onto a directory: better to fail before anything has moved.
        for path in [&config_path, &weights_path] {
            if path.is_dir() {
                let message = format!("{} is a directory", path.display());
                return Err(io::Error::new(io::ErrorKind::IsADirectory, message));
            }
        }
        let mut folder = tempfile::Builder::new();
        folder.prefix(".adapter-");
        // Until the save is finished, others read the adapter from this folder.
        #[cfg(unix)]
        folder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let folder = folder.tempdir_in(dir)?;
        for (file, bytes) in [(CONFIG_FILE, config), (WEIGHTS_FILE, weights)] {
            let mut file = File::create_new(folder.path().join(file))?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        let is_first = !config_path.exists();
        // There is no old configuration to move in: the rename below makes the new files count.
        if is_first {
            File::create_new(folder.path().join(OLD_CONFIG))?.sync_all()?;
        }
        // Flushed first: under its new name the folder must never lack a file after a power cut.
        sync(folder.path());
        fs::rename(folder.path(), dir.join(NEW))?;
        // The folder has another name now, under which it must stay.
        let _ = folder.keep();
        // The new folder is on the disk before the old configuration leaves its place.
        sync(dir);
        if !is_first && let Err(error) = fs::rename(&config_path, dir.join(NEW).join(OLD_CONFIG)) {
            fs::remove_dir_all(dir.join(NEW))?;
            return Err(error);
        }
        sync(dir);
        finish(dir)?;
    }
    sync(dir);
    Ok(())
}

/// Moves up the new files of a save that took effect; removes the files of a save that did not.
fn finish(dir: &Path) -> io::Result<()> {
    let new = dir.join(NEW);
    if !new.is_dir() {
        return Ok(());
    }
    if is_cut_off(dir) {
        let weights = temporary(dir)?.into_temp_path();
        fs::remove_file(&weights)?;
        // A second name, not a move, so that the folder stays whole. Else a copy.
        if fs::hard_link(new.join(WEIGHTS_FILE), &weights).is_err() {
            fs::copy(new.join(WEIGHTS_FILE), &weights)?;
            File::open(&weights)?.sync_all()?;
        }
        weights.persist(dir.join(WEIGHTS_FILE))?;
        // The configuration comes up last, over weights that are on the disk: once it is up, the
        // folder no longer counts.
        sync(dir);
        fs::rename(new.join(CONFIG_FILE), dir.join(CONFIG_FILE))?;
        sync(dir);
    }
    fs::remove_dir_all(&new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<_> = entries
            .map(|e| {
                (
                    e.file_name().into_string().unwrap(),
                    fs::read(e.path()).unwrap_or_default(),
                )
            })
            .collect();
        files.sort();
        files
    }

    /// Both files as they are to be read.
    fn read(dir: &Path) -> [String; 2] {
        [CONFIG_FILE, WEIGHTS_FILE].map(|file| fs::read_to_string(place(dir, file)).unwrap())
    }

    #[test]
    fn both_files_are_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        let file = |name: &str, bytes: &[u8]| (name.to_string(), bytes.to_vec());
        for (config, weights) in [(b"c1", b"w1"), (b"c1", b"w2"), (b"c2", b"w3")] {
            write(&dir, config, weights).unwrap();
            let expected = [file(CONFIG_FILE, config), file(WEIGHTS_FILE, weights)];
            assert_eq!(contents(&dir), expected);
        }
    }

    #[test]
    fn a_failure_leaves_the_old_files() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::write(dir.join(CONFIG_FILE), "c1").unwrap();
        // A directory cannot be replaced by a file that is renamed.
        fs::create_dir(dir.join(WEIGHTS_FILE)).unwrap();
        for config in [b"c1", b"c2"] {
            assert!(write(dir, config, b"w2").is_err());
            let names: Vec<_> = contents(dir).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, [CONFIG_FILE, WEIGHTS_FILE]);
            assert_eq!(fs::read(dir.join(CONFIG_FILE)).unwrap(), b"c1");
        }
    }

    /// Every state that a crash can leave is read as one adapter, and the next save ends it.
    #[test]
    fn every_step_leaves_a_pair() {
        let at = |count: usize| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().to_path_buf();
            write(&path, b"c1", b"w1").unwrap();
            let new = path.join(NEW);
            let steps: [&dyn Fn(); 5] = [
                &|| fs::create_dir(path.join(".adapter-tmp")).unwrap(),
                &|| {
                    fs::create_dir(&new).unwrap();
                    fs::write(new.join(CONFIG_FILE), "c2").unwrap();
                    fs::write(new.join(WEIGHTS_FILE), "w2").unwrap();
                },
                &|| fs::rename(path.join(CONFIG_FILE), new.join(OLD_CONFIG)).unwrap(),
                &|| {
                    fs::copy(new.join(WEIGHTS_FILE), path.join(WEIGHTS_FILE)).unwrap();
                },
                &|| fs::rename(new.join(CONFIG_FILE), path.join(CONFIG_FILE)).unwrap(),
            ];
            steps[..count].iter().for_each(|step| step());
            dir
        };
        for (steps, expected) in [
            (1, ["c1", "w1"]),
            (2, ["c1", "w1"]),
            (3, ["c2", "w2"]),
            (4, ["c2", "w2"]),
            (5, ["c2", "w2"]),
        ] {
            let dir = at(steps);
            assert_eq!(read(dir.path()), expected, "{steps}");
            finish(dir.path()).unwrap();
            assert_eq!(read(dir.path()), expected, "{steps}");
            assert!(!dir.path().join(NEW).exists());
            write(dir.path(), b"c3", b"w3").unwrap();
            assert_eq!(read(dir.path()), ["c3", "w3"]);
        }
    }

    /// A save that never took effect does not come to life when the old files are deleted.
    #[test]
    fn what_never_took_effect_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        write(path, b"c1", b"w1").unwrap();
        fs::create_dir(path.join(NEW)).unwrap();
        fs::write(path.join(NEW).join(CONFIG_FILE), "c2").unwrap();
        fs::write(path.join(NEW).join(WEIGHTS_FILE), "w2").unwrap();
        fs::remove_file(path.join(CONFIG_FILE)).unwrap();
        assert!(!place(path, CONFIG_FILE).exists());
        finish(path).unwrap();
        assert!(!path.join(NEW).exists());
    }
}
