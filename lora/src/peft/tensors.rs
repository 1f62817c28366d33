//! [`Tensors`]: an adapter's tensors under plain keys, whatever the file calls them.

use super::{AdapterConfig, AdapterDir, TokenIndices, files, keys};
use crate::config::naming::Naming;
use crate::error::shorten;
use crate::file::TensorFile;
use crate::{Error, LoraConfig, Result};
use candle_core::{DType, Tensor};
use indexmap::IndexMap;
use safetensors::tensor::{Dtype, TensorInfo};
use std::collections::BTreeSet;
use std::path::Path;

/// The tensors of `adapter_model.safetensors`, and those that were made of them.
///
/// A tensor has a key in the file, which messages show, and a plain key: without PEFT's prefix and
/// the adapter's name, and with the model's path in place of the file's.
pub(super) struct Tensors {
    file: TensorFile,
    /// By the key in the file; a tensor that was made has its plain key there.
    infos: IndexMap<String, TensorInfo>,
    made: IndexMap<String, Tensor>,
    /// The key in the file by plain key, in order.
    keys: IndexMap<String, String>,
}

impl Tensors {
    /// Opens the directory's file, of which only the header is read.
    ///
    /// # Errors
    /// If the file is damaged or not there, holds a tensor twice, or holds several adapters.
    pub fn open(dir: &AdapterDir) -> Result<Self> {
        let file = TensorFile::open(&files::weights_path(dir.path())?)?;
        let mut sorted: Vec<&String> = file.tensors().keys().collect();
        sorted.sort();
        let mut keys: IndexMap<String, String> = IndexMap::new();
        let mut adapters = BTreeSet::new();
        let mut problems = Vec::new();
        for key in sorted {
            let (plain, adapter) = keys::without_adapter(keys::without_prefix(key));
            adapters.extend(adapter);
            if let Some(other) = keys.insert(plain.clone(), key.clone()) {
                problems.push(format!(
                    "holds `{}` with and without its prefix or the adapter's name: `{}` and `{}`",
                    shorten(&plain),
                    shorten(&other),
                    shorten(key)
                ));
            }
        }
        if adapters.len() > 1 {
            let names: Vec<String> = adapters.into_iter().map(shorten).collect();
            problems.push(format!(
                "holds several adapters, by the names in its keys: {}; save each in a directory of \
                 its own",
                names.join(", ")
            ));
        }
        if !problems.is_empty() {
            return Err(Error::File {
                path: file.path().into(),
                problems,
            });
        }
        Ok(Self {
            infos: file.tensors().clone(),
            made: IndexMap::new(),
            file,
            keys,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Plain keys, each with the key in the file.
    pub fn keys(&self) -> &IndexMap<String, String> {
        &self.keys
    }

    /// Every tensor's dtype and shape by its key in the file.
    pub fn tensors(&self) -> &IndexMap<String, TensorInfo> {
        &self.infos
    }

    /// Dtype and shape of the tensor with this plain key.
    pub fn info(&self, plain: &str) -> Option<&TensorInfo> {
        self.infos.get(self.keys.get(plain)?)
    }

    /// The tensor with this key in the file, on the CPU.
    pub fn tensor(&self, key: &str) -> Result<Tensor> {
        match self.made.get(key) {
            Some(made) => Ok(made.clone()),
            None => self.file.tensor(key),
        }
    }

    /// The tensor with this plain key, on the CPU, if there is one.
    pub fn get(&self, plain: &str) -> Result<Option<Tensor>> {
        let key = self.keys.get(plain);
        key.map(|key| self.tensor(key)).transpose()
    }

    /// Leaves out the tensor with this plain key.
    pub fn remove(&mut self, plain: &str) {
        if let Some(key) = self.keys.shift_remove(plain) {
            self.infos.shift_remove(&key);
            self.made.shift_remove(&key);
        }
    }

    /// Puts a tensor under a plain key, in place of another.
    pub fn insert(&mut self, plain: &str, tensor: Tensor) -> Result<()> {
        self.remove(plain);
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        let info = TensorInfo {
            dtype: dtype(tensor.dtype())?,
            shape: tensor.dims().to_vec(),
            data_offsets: (0, bytes),
        };
        self.infos.insert(plain.into(), info);
        self.made.insert(plain.into(), tensor);
        self.keys.insert(plain.into(), plain.into());
        Ok(())
    }

    /// The paths of the layers that the plain keys speak of.
    pub fn paths(&self) -> BTreeSet<String> {
        let paths = self.keys.keys().filter_map(|key| match keys::parse(key) {
            Some(parsed) => Some(keys::without_wrappers(parsed.path)),
            None if keys::is_counter(key) => None,
            // A module's name tells its place. A parameter's, such as `weight`, tells nothing.
            None => {
                let name = keys::without_copies(&keys::without_wrappers(key));
                let module = name.rsplit_once('.').map(|(module, _)| module.to_string());
                Some(module.unwrap_or(name))
            }
        });
        paths.collect()
    }

    /// Puts the model's paths in place of the file's.
    ///
    /// # Errors
    /// The problem, if two tensors would get one key.
    pub fn rename(&mut self, naming: &Naming) -> Result<(), String> {
        let mut renamed = IndexMap::new();
        for (plain, key) in &self.keys {
            let plain = naming.of(plain);
            if let Some(other) = renamed.insert(plain.clone(), key.clone()) {
                return Err(format!(
                    "`{}` and `{}` would both become `{}`",
                    shorten(&other),
                    shorten(key),
                    shorten(&plain)
                ));
            }
        }
        renamed.sort_keys();
        self.keys = renamed;
        Ok(())
    }

    /// Names the input embedding in the settings, where the file has PEFT's list of trained rows
    /// without a name. Only the weights tell whose rows they are.
    ///
    /// # Errors
    /// Those of [`input_embedding`](Self::input_embedding).
    pub fn name_rows(
        &self,
        file: &AdapterConfig,
        config: &mut LoraConfig,
        is_embedding: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        if let Some(TokenIndices::Input(ids)) = &file.trainable_token_indices
            && let Some(path) = self.input_embedding(is_embedding)?
        {
            let path = config.naming.meant_or_same(&path);
            config.trainable_token_indices = IndexMap::from([(path, ids.clone())]);
        }
        Ok(())
    }

    /// The path of the input embedding, whose rows are trained.
    ///
    /// # Errors
    /// The problem, if several layers have trained rows, and not just one is an embedding.
    fn input_embedding(
        &self,
        is_embedding: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, String> {
        let parsed = self.keys.keys().filter_map(|key| keys::parse(key));
        let rows = parsed.filter(|parsed| parsed.part == crate::Part::Tokens);
        let paths: Vec<&str> = rows.map(|parsed| parsed.path).collect();
        let named: Vec<&str> = paths
            .iter()
            .copied()
            .filter(|path| is_embedding(path))
            .collect();
        match (paths.as_slice(), named.as_slice()) {
            ([], _) => Ok(None),
            ([one], _) | (_, [one]) => Ok(Some(one.to_string())),
            _ => Err(format!(
                "`trainable_token_indices` names no embedding, and several layers have trained \
                 rows: {}",
                paths.join(", ")
            )),
        }
    }
}

/// The name of a dtype in a file.
pub(super) fn dtype(dtype: DType) -> Result<Dtype> {
    Ok(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        other => {
            let message = format!("a tensor of {other:?} is no part of an adapter");
            return Err(Error::Config(vec![message]));
        }
    })
}
