//! The weights of a checkpoint, with fresh weights in place of some.

use super::random::Random;
use crate::file::Checkpoint;
use candle_core::{DType, Device, Shape, Tensor, bail};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;
use std::collections::{HashMap, HashSet};

/// The weights of a checkpoint, with fresh weights in place of some.
pub(super) struct Loader {
    checkpoint: Checkpoint,
    random: Random,
    fresh: HashSet<String>,
    /// The checkpoint's names of the parameters that it names otherwise.
    renamed: HashMap<String, String>,
}

impl Loader {
    pub(super) fn new(
        checkpoint: Checkpoint,
        random: Random,
        fresh: impl Iterator<Item = String>,
        renamed: HashMap<String, String>,
    ) -> Self {
        Self {
            checkpoint,
            random,
            fresh: fresh.collect(),
            renamed,
        }
    }

    fn in_file<'a>(&'a self, name: &'a str) -> &'a str {
        self.renamed.get(name).map_or(name, String::as_str)
    }
}

impl SimpleBackend for Loader {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        if self.fresh.contains(name) {
            return self.random.get(shape, name, init, dtype, device);
        }
        let tensor = self.get_unchecked(name, dtype, device)?;
        if *tensor.shape() != shape {
            bail!(
                "`{name}` is {:?}, the model's is {:?}",
                tensor.dims(),
                shape.dims()
            );
        }
        Ok(tensor)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.checkpoint
            .tensor(self.in_file(name))?
            .to_dtype(dtype)?
            .to_device(device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.fresh.contains(name) || self.checkpoint.contains(self.in_file(name))
    }
}
