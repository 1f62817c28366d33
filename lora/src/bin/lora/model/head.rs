//! The heads that adapters bring.

use super::Named;
use anyhow::{Context, Result, bail};
use lora::images::Input;
use lora::models::convnext::ConvNext;
use lora::models::{self, Task};

/// The layers that tell classes apart, in the models that there are.
const HEADS: [&str; 5] = [
    "classifier",
    "classifier.out_proj",
    "head",
    "head.fc",
    "score",
];

impl Named {
    /// How the base model is to be created: with a head for the adapters' classes, and for images in
    /// colour if an adapter brings a first layer for them.
    pub(super) fn options(&self) -> Result<models::Options> {
        let mut options = models::Options::new();
        let classes = self
            .classes()
            .context("cannot use these --adapter together")?;
        let count = match classes.len() {
            0 => self.head_classes()?,
            count => Some(count),
        };
        if let Some(count) = count {
            options = options.num_classes(count);
        }
        if self.source.is_of_images() {
            return self.in_colour(options);
        }
        let is_classifier = self.adapters.iter().any(|one| one.is_classifier());
        Ok(match is_classifier || count.is_some() {
            true => options.task(Task::SequenceClassification),
            false => options,
        })
    }

    /// The classes of a head that an adapter holds whole.
    fn head_classes(&self) -> Result<Option<usize>> {
        for adapter in &self.adapters {
            for head in HEADS {
                if let Some([classes, _]) = adapter.shape(head)?.as_deref() {
                    return Ok(Some(*classes));
                }
            }
        }
        Ok(None)
    }

    fn in_colour(&self, options: models::Options) -> Result<models::Options> {
        let Ok(input) = Input::read(&self.source.path) else {
            return Ok(options);
        };
        for adapter in &self.adapters {
            let shape = adapter.shape(ConvNext::FIRST_LAYER)?;
            if let Some([_, channels, _, _]) = shape.as_deref()
                && *channels != input.channels()
            {
                return Ok(options.in_chans(*channels).fresh([ConvNext::FIRST_LAYER]));
            }
        }
        Ok(options)
    }

    /// Checks that an adapter brings each layer that the base's files lack: a head nobody trained says
    /// nothing.
    ///
    /// # Errors
    /// Names the layer.
    pub fn check_head(&self, fresh: &[String]) -> Result<()> {
        for name in fresh {
            let layer = name
                .rsplit_once('.')
                .map_or(name.as_str(), |(layer, _)| layer);
            let mut is_brought = false;
            for adapter in &self.adapters {
                is_brought |= adapter.shape(layer)?.is_some();
            }
            if !is_brought {
                bail!(
                    "--model {} lacks `{layer}`, and no --adapter brings it: name an adapter that was trained \
                     with this layer",
                    self.source.name
                );
            }
        }
        Ok(())
    }

    /// The names of so many classes: the adapters', else the model's own, else numbers.
    ///
    /// # Errors
    /// If the adapters name another number of classes.
    pub fn class_names(&self, own: Vec<String>, count: usize) -> Result<Vec<String>> {
        let names = self.classes()?;
        if !names.is_empty() && names.len() != count {
            bail!(
                "classes.json of the adapter names {} classes, its head has {count}",
                names.len()
            );
        }
        let known = [names, own].into_iter().find(|names| names.len() == count);
        Ok(known.unwrap_or_else(|| (0..count).map(|class| class.to_string()).collect()))
    }
}
