//! Where a command writes: whole or not at all, and over nothing that is there.

use anyhow::{Context, Result, bail};
use clap::Args;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What may be overwritten.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Write even if the output is there already
    #[arg(long)]
    pub force: bool,
}

impl Output {
    /// Checks that nothing is overwritten that should stay, before anything is computed.
    ///
    /// # Errors
    /// If something is there.
    pub fn check(self, out: &Path) -> Result<()> {
        let is_there = match out.is_dir() {
            true => fs::read_dir(out)
                .with_context(|| format!("cannot look into {}", out.display()))?
                .next()
                .is_some(),
            false => out.exists(),
        };
        if is_there && !self.force {
            bail!(
                "{} is there already: name another place, or say --force to write over it",
                out.display()
            );
        }
        Ok(())
    }

    /// The file at this path, which is written when the work is done. Checks as [`check`](Self::check).
    ///
    /// # Errors
    /// If something is there; or if no file can be.
    pub fn file(self, path: &Path) -> Result<OutputFile> {
        let shown = path.display();
        if path.is_dir() {
            bail!("{shown} is a folder: name a file in it");
        }
        let folder = folder(path);
        if !folder.is_dir() {
            bail!("{shown}: there is no folder {}", folder.display());
        }
        self.check(path)?;
        Ok(OutputFile {
            path: path.into(),
            force: self.force,
        })
    }
}

/// A file that is written at the end of the work.
#[derive(Clone, Debug)]
pub struct OutputFile {
    path: PathBuf,
    force: bool,
}

impl OutputFile {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written, or is there by now.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        let write = || -> io::Result<()> {
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
        write().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn folder(path: &Path) -> &Path {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Whether a path asks for a GGUF file to be written: nothing is there that could tell.
pub fn is_named_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

/// A folder with an adapter of PEFT's, which a command reads: the one that was named, or one that was
/// made of another format and goes when the command ends.
pub struct Folder {
    pub path: PathBuf,
    _made: Option<tempfile::TempDir>,
}

impl Folder {
    /// The adapter at this path, of any format. `options` tell what the format leaves open.
    ///
    /// # Errors
    /// If there is none, or the format cannot be read.
    pub fn of(path: &Path, options: &lora::peft::import::Options) -> Result<Self> {
        use lora::peft::import::{Format, import};
        match Format::find(path)? {
            None => bail!("{} holds no adapter", path.display()),
            Some(Format::Peft) => Ok(Self {
                path: match path.parent().filter(|_| path.is_file()) {
                    Some(parent) if parent.as_os_str().is_empty() => ".".into(),
                    Some(parent) => parent.into(),
                    None => path.into(),
                },
                _made: None,
            }),
            Some(format) => {
                let made = tempfile::tempdir().context("cannot make a temporary folder")?;
                import(path, made.path(), options).with_context(|| {
                    format!("cannot read this file of {format}; `lora convert` has flags for what it leaves open")
                })?;
                Ok(Self {
                    path: made.path().into(),
                    _made: Some(made),
                })
            }
        }
    }
}

/// `PATH` or `PATH=WEIGHT`: an adapter, and how much of it is meant.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted {
    pub path: PathBuf,
    pub weight: f64,
}

impl std::fmt::Display for Weighted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.display();
        match self.weight == 1.0 {
            true => write!(f, "{path}"),
            false => write!(f, "{path} (times {})", self.weight),
        }
    }
}

impl std::str::FromStr for Weighted {
    type Err = String;

    /// A path may have `=` in it: what stands behind the last `=` is a weight only if nothing has the
    /// whole text as its path.
    fn from_str(text: &str) -> Result<Self, String> {
        let weighted = text.rsplit_once('=').filter(|_| !Path::new(text).exists());
        let Some((path, weight)) = weighted else {
            return Ok(Self {
                path: text.into(),
                weight: 1.0,
            });
        };
        match weight.parse::<f64>() {
            Ok(weight) if weight.is_finite() => Ok(Self {
                path: path.into(),
                weight,
            }),
            _ => Err(format!("`{weight}` is no finite number, as in DIR=0.5")),
        }
    }
}
