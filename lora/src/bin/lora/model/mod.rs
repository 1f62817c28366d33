//! Models and adapters that a command line names.
//!
//! ```text
//! #[derive(Debug, Args)]
//! pub struct Options {
//!     #[command(flatten)]
//!     model: ModelArgs,       // --model, --adapter
//!     #[command(flatten)]
//!     common: Common,         // --threads, --json
//! }
//!
//! let named = options.model.find()?;                  // the base and its adapters, checked
//! let tokenizer = named.source.tokenizer()?;
//! let created = named.open()?.into_decoder()?;        // with a head for the adapter's classes
//! let model = load(&created.model, &named.adapters)?; // in eval mode; without adapters the base
//! let settings = named.source.generation(&tokenizer)?;
//! ```

mod adapter;
mod head;
mod source;

pub use adapter::{AdapterArg, AdapterSource, CLASSES_FILE, load};
pub use source::Source;

use crate::shell::print::note;
use anyhow::{Context, Result, bail};
use clap::Args;
use lora::models::Auto;
use std::collections::BTreeSet;

/// The options that name a model.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Base model: a directory, a GGUF file, or OWNER/NAME on the Hugging Face hub; or the folder of an
    /// adapter, which names its base [default: the base that the adapter names]
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<String>,
    /// Adapter: its folder, or OWNER/NAME on the hub, with a name if you like; may be given several times
    #[arg(long, short, value_name = "[NAME=]DIR")]
    pub adapter: Vec<AdapterArg>,
}

/// A base model, and adapters for it.
#[derive(Clone, Debug)]
pub struct Named {
    /// The base model.
    pub source: Source,
    /// The adapters, in the order of the command line; each with another name.
    pub adapters: Vec<AdapterSource>,
}

impl ModelArgs {
    /// The model and the adapters that the options name.
    ///
    /// # Errors
    /// If no model is named, one of them does not exist, or adapters have the same name. An adapter that
    /// names another base is noted, as files move.
    pub fn find(&self) -> Result<Named> {
        let mut args = self.adapter.clone();
        let mut model = self.model.clone();
        if let Some(dir) = model.take_if(|model| AdapterSource::is_in(model.as_ref())) {
            args.insert(0, AdapterArg::of(dir));
        }
        let mut adapters = Vec::new();
        for arg in &args {
            adapters.push(AdapterSource::find(arg)?);
        }
        if let [only] = adapters.as_mut_slice()
            && args[0].name.is_none()
        {
            only.name = lora::DEFAULT_ADAPTER.into();
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = adapters.iter().find(|adapter| !names.insert(&adapter.name)) {
            bail!(
                "two adapters are called {name}: give them names, --adapter NAME={dir}",
                name = twice.name,
                dir = twice.dir.display()
            );
        }
        let naming = adapters.iter().find(|one| one.base.is_some());
        let named = naming.and_then(|one| one.base.clone());
        let Some(base) = model.clone().or(named) else {
            match adapters.first() {
                Some(adapter) => bail!(
                    "{} does not name its base model: say --model, a directory, a GGUF file, or OWNER/NAME on \
                     the Hugging Face hub",
                    adapter.dir.display()
                ),
                None => bail!(
                    "--model is missing: a directory with config.json, model.safetensors and tokenizer.json, a \
                     GGUF file, or OWNER/NAME on the Hugging Face hub; or say --adapter, which names its base"
                ),
            }
        };
        let source = match naming.filter(|_| model.is_none()) {
            None => Source::find(&base)?,
            Some(adapter) => Source::find(&base).with_context(|| {
                format!(
                    "the adapter {} names {base} as its base model, which is not found from here: say --model",
                    adapter.dir.display()
                )
            })?,
        };
        for adapter in &adapters {
            if let Some(difference) = adapter.other_base(&source) {
                note(format_args!("note: {difference}"))?;
            }
        }
        Ok(Named { source, adapters })
    }
}

impl Named {
    /// Reads the base model: for adapters that tell classes apart, as a classifier for their classes.
    ///
    /// # Errors
    /// If it cannot be read, or the adapters tell different classes apart.
    pub fn open(&self) -> Result<Auto> {
        self.source.open(&self.options()?)
    }

    /// The classes that the adapters tell apart, in the order of the head's logits; empty if none has any.
    ///
    /// # Errors
    /// If they tell different ones apart.
    pub fn classes(&self) -> Result<Vec<String>> {
        let mut with = self.adapters.iter().filter(|one| !one.classes.is_empty());
        let Some(first) = with.next() else {
            return Ok(Vec::new());
        };
        if let Some(other) = with.find(|other| other.classes != first.classes) {
            bail!(
                "{} and {} tell different classes apart: use one of them at a time",
                first.dir.display(),
                other.dir.display()
            );
        }
        Ok(first.classes.clone())
    }
}
