//! The output folder: what a run may write there, and what it begins and ends with.

use super::settings::Settings;
use crate::model::CLASSES_FILE;
use anyhow::{Context, Result, bail};
use lora::peft::{CONFIG_FILE, WEIGHTS_FILE};
use lora::train::ModelCard;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// The settings of the run in a folder.
const SETTINGS: &str = "train.toml";
/// What the trainer writes.
const LOG: &str = "log.jsonl";
const CHECKPOINTS: &str = "checkpoints";
/// All files of a run, beside its checkpoints. The first is made first and goes last.
const FILES: [&str; 8] = [
    SETTINGS,
    LOG,
    "curves.svg",
    "events.out.tfevents.lora",
    CLASSES_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    "README.md",
];

/// The output folder of a run.
#[derive(Clone, Debug)]
pub struct Folder {
    dir: PathBuf,
    resume: bool,
    force: bool,
}

impl Folder {
    /// This folder, to go on with the run in it, or to replace it.
    pub fn new(dir: &Path, resume: bool, force: bool) -> Self {
        Self {
            dir: dir.into(),
            resume,
            force,
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The settings of the run in the folder.
    ///
    /// # Errors
    /// If there is none.
    pub fn settings(&self) -> Result<PathBuf> {
        let path = self.dir.join(SETTINGS);
        match path.is_file() {
            true => Ok(path),
            false => bail!(
                "--output {} holds no run to go on with: leave --resume out, or name the folder of the run",
                self.dir.display()
            ),
        }
    }

    /// Refuses to write over what is there.
    ///
    /// # Errors
    /// Says what stands in the way, and what to do.
    pub fn check(&self) -> Result<()> {
        let name = self.dir.display();
        if self.dir.exists() && !self.dir.is_dir() {
            bail!("--output {name} is a file: name a folder");
        }
        // A card of the user's stays in any case.
        ModelCard::place(&self.dir).with_context(|| format!("--output {name}"))?;
        if self.resume || self.force {
            return Ok(());
        }
        let stands = |file: &&str| self.dir.join(file).symlink_metadata().is_ok();
        if [SETTINGS, LOG, CHECKPOINTS].iter().any(stands) {
            bail!(
                "--output {name} holds a run: go on with it by --resume, replace it by --force, or name \
                 another folder"
            );
        }
        match FILES.iter().find(|file| stands(file)) {
            Some(file) => bail!(
                "--output {name} holds {file}, which the run would write: name another folder, or replace it \
                 by --force"
            ),
            None => Ok(()),
        }
    }

    /// Makes the folder, takes away a run that `--force` replaces, and writes the settings.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn begin(&self, settings: &Settings) -> Result<()> {
        let cannot = || format!("cannot write to --output {}", self.dir.display());
        fs::create_dir_all(&self.dir).with_context(cannot)?;
        if self.force && !self.resume {
            self.clear().with_context(cannot)?;
        }
        self.write(SETTINGS, settings.to_toml()?.as_bytes())
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let write = || -> io::Result<()> {
            let mut file = NamedTempFile::new_in(&self.dir)?;
            file.write_all(bytes)?;
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644))?;
            }
            file.as_file().sync_all()?;
            file.persist(&path)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Takes away what a run left that has failed before its first checkpoint.
    pub fn undo(&self) {
        if !self.resume && self.checkpoints().next().is_none() {
            // Nothing more can be done if this fails: the failure itself is told.
            let _ = self.clear();
            let _ = fs::remove_dir(&self.dir);
        }
    }

    /// The checkpoints' files.
    fn checkpoints(&self) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(self.dir.join(CHECKPOINTS));
        let paths = entries.into_iter().flatten().flatten();
        paths.map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_whole = name.starts_with("step-") || name == "best.safetensors";
            is_whole && name.ends_with(".safetensors")
        })
    }

    /// Takes away a run's files, and nothing else.
    fn clear(&self) -> io::Result<()> {
        for path in self.checkpoints() {
            fs::remove_file(path)?;
        }
        // A folder with files of the user's stays.
        let _ = fs::remove_dir(self.dir.join(CHECKPOINTS));
        for file in FILES.iter().rev() {
            match fs::remove_file(self.dir.join(file)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The command that goes on with the run.
    pub fn command(&self) -> String {
        let dir = self.dir.to_string_lossy();
        let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@".contains(c);
        match dir.chars().all(plain) {
            true => format!("lora train --resume --output {dir}"),
            false => format!(
                "lora train --resume --output '{}'",
                dir.replace('\'', "'\\''")
            ),
        }
    }
}
