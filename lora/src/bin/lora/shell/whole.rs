//! Files that a command writes: whole or not at all, and over nothing that is there.

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file to be written at the end of the work.
#[derive(Clone, Debug)]
pub struct Whole {
    path: PathBuf,
    force: bool,
}

impl Whole {
    /// Checks, before the work, that `--output` can be written.
    ///
    /// # Errors
    /// If something is there, without `--force`; or the folder is not there.
    pub fn new(path: &Path, force: bool) -> Result<Self> {
        let shown = path.display();
        if path.is_dir() {
            bail!("--output {shown} is a folder: name a file in it");
        }
        if path.exists() && !force {
            bail!("--output {shown} is there already: say --force to replace it, or name another");
        }
        if !folder(path).is_dir() {
            bail!(
                "--output {shown}: there is no folder {}",
                folder(path).display()
            );
        }
        Ok(Self {
            path: path.into(),
            force,
        })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written, or is there by now.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let mut builder = tempfile::Builder::new();
            builder.prefix(".lora-");
            // Others may read the file as the process's mask says.
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
            let mut file = builder.tempfile_in(folder(&self.path))?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            match self.force {
                true => file.persist(&self.path)?,
                false => file.persist_noclobber(&self.path)?,
            };
            Ok(())
        };
        write().with_context(|| format!("cannot write --output {}", self.path.display()))
    }
}

fn folder(path: &Path) -> &Path {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}
