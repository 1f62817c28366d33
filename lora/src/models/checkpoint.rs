//! A safetensors file whose tensors are read one at a time.

use super::random::Random;
use crate::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor, bail};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The format's limit.
const LONGEST_HEADER: u64 = 100_000_000;

/// An open safetensors file: its header is read and checked.
#[derive(Debug)]
pub(super) struct Checkpoint {
    path: PathBuf,
    file: Mutex<File>,
    /// Where the tensors' bytes begin.
    start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Checkpoint {
    /// Opens a file whose length fits its header.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let problem = |problem: String| Error::file(path, problem);
        let fail = |error: std::io::Error| problem(error.to_string());
        let mut file = File::open(path).map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        let not_ours = || problem("not a safetensors file, or a damaged one".into());
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(|_| not_ours())?;
        let size = u64::from_le_bytes(size);
        if size > LONGEST_HEADER.min(length.saturating_sub(8)) {
            return Err(not_ours());
        }
        let mut header = Vec::new();
        let read = file.by_ref().take(size).read_to_end(&mut header);
        read.map_err(fail)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| problem(format!("not a safetensors file: {error}")))?;
        let whole = 8 + size + metadata.data_len() as u64;
        if length != whole {
            return Err(problem(format!(
                "the file has {length} bytes, by its header it should have {whole}; it was cut off \
                 or damaged"
            )));
        }
        let tensors = metadata.tensors().into_iter();
        let tensors = tensors.map(|(name, info)| (name, info.clone()));
        Ok(Self {
            path: path.into(),
            file: Mutex::new(file),
            start: 8 + size,
            tensors: tensors.collect(),
        })
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        let info = self.tensors.get(name)?;
        Some(&info.shape)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What is wrong with a tensor that holds no floating-point numbers.
    pub(super) fn not_a_float(&self, name: &str) -> Option<String> {
        let found = self.tensors.get(name)?.dtype;
        let float = DType::try_from(found).is_ok_and(|dtype| dtype.is_float());
        (!float).then(|| format!("`{name}` is {found:?}, the model's is floating-point"))
    }

    fn read(&self, name: &str, device: &Device) -> candle_core::Result<Tensor> {
        let Some(info) = self.tensors.get(name) else {
            bail!("{}: `{name}` is missing", self.path.display());
        };
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.start + from as u64))?;
        file.read_exact(&mut bytes)?;
        drop(file);
        Tensor::from_raw_buffer(&bytes, DType::try_from(info.dtype)?, &info.shape, device)
    }
}

/// Weights of a file, but for some that are fresh.
pub(super) struct Loader {
    checkpoint: Checkpoint,
    random: Random,
    fresh: HashSet<String>,
}

impl Loader {
    pub(super) fn new(
        checkpoint: Checkpoint,
        random: Random,
        fresh: impl Iterator<Item = String>,
    ) -> Self {
        Self {
            checkpoint,
            random,
            fresh: fresh.collect(),
        }
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
        self.checkpoint.read(name, device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.fresh.contains(name) || self.checkpoint.tensors.contains_key(name)
    }
}
