//! [`GgufFile`]: an open model; memory holds only its header.

use super::header::{self, Field, Header, Info, Wanted};
use super::types;
use crate::error::shorten;
use crate::{Error, Result};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};
use indexmap::IndexMap;
use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// More parts than any model has.
const MAX_PARTS: usize = 1 << 10;

const MODEL: Wanted = Wanted {
    keeps: |key| !key.starts_with("quantize."),
    kinds: &[
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
        GgmlDType::Q8K,
    ],
};

/// The tensors of a model in one GGUF file or in several. Each is read when it is asked for.
#[derive(Debug)]
pub(crate) struct GgufFile {
    path: PathBuf,
    parts: Vec<Mutex<File>>,
    pub(crate) fields: IndexMap<String, Field>,
    /// By the tensors' names: in which part they are, and where.
    tensors: IndexMap<String, (usize, Info)>,
}

impl GgufFile {
    /// Opens a file. If its name is that of the first of several parts, `..-00001-of-00003.gguf`, the
    /// others beside it belong to the model.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (mut parts, mut tensors) = (Vec::new(), IndexMap::new());
        let mut fields = IndexMap::new();
        for (index, place) in all_parts(path)?.iter().enumerate() {
            let (file, header) = open(place)?;
            for (name, info) in header.tensors {
                if tensors.contains_key(&name) {
                    let problem = format!("holds `{}` in two files", shorten(&name));
                    return Err(Error::file(path, problem));
                }
                tensors.insert(name, (index, info));
            }
            if index == 0 {
                fields = header.fields;
            }
            parts.push(Mutex::new(file));
        }
        if let Some(Field::Text(kind)) = fields.get("general.type")
            && kind != "model"
        {
            let problem = format!("is no model: `general.type` is {}", shorten(kind));
            return Err(Error::file(path, problem));
        }
        Ok(Self {
            path: path.into(),
            parts,
            fields,
            tensors,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(crate) fn info(&self, name: &str) -> Option<&Info> {
        self.tensors.get(name).map(|(_, info)| info)
    }

    /// The number of files that the model is in.
    pub(crate) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// A whole number of a key; of a list, the number that all have in common.
    pub(crate) fn count(&self, key: &str) -> Option<usize> {
        match self.fields.get(key)? {
            Field::Unsigned(count) => usize::try_from(*count).ok(),
            Field::Numbers(counts) => match counts[..] {
                [first, ..] if counts.iter().all(|count| *count == first) => Some(first as usize),
                _ => None,
            },
            _ => None,
        }
    }

    /// The text of a key.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.fields.get(key) {
            Some(Field::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The bytes of a tensor.
    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let failed = |problem: String| Error::file(&self.path, format!("`{name}` {problem}"));
        let Some((part, info)) = self.tensors.get(name) else {
            return Err(failed("is not in the file".into()));
        };
        let size = usize::try_from(info.size).map_err(|error| failed(error.to_string()))?;
        let mut bytes = Vec::new();
        let reserved = bytes.try_reserve_exact(size);
        reserved.map_err(|error| failed(error.to_string()))?;
        let file = self.parts[*part].lock();
        let mut file = file.unwrap_or_else(PoisonError::into_inner);
        let sought = file.seek(SeekFrom::Start(info.start));
        sought.map_err(|error| failed(error.to_string()))?;
        let read = (&mut *file).take(info.size).read_to_end(&mut bytes);
        read.map_err(|error| failed(error.to_string()))?;
        match bytes.len() == size {
            true => Ok(bytes),
            false => Err(failed("became shorter while it was read".into())),
        }
    }

    /// The matrix of this name in its blocks, with its rows in this order.
    pub(crate) fn blocks(
        &self,
        name: &str,
        order: Option<&[u32]>,
        device: &Device,
    ) -> Result<QTensor> {
        let bytes = self.bytes(name)?;
        let info = &self.tensors[name].1;
        let bytes = match order {
            Some(order) => {
                let rows: Vec<&[u8]> = bytes.chunks_exact(bytes.len() / info.rows).collect();
                let sorted = order.iter().map(|&row| rows[row as usize]);
                sorted.collect::<Vec<_>>().concat()
            }
            None => bytes,
        };
        of_blocks(bytes, info.kind, (info.rows, info.columns), device)
    }

    /// The values of a tensor in f32, (rows, columns); a vector is a single row.
    pub(crate) fn values(&self, name: &str) -> Result<Tensor> {
        let blocks = self.blocks(name, None, &Device::Cpu)?;
        Ok(blocks.dequantize(&Device::Cpu)?)
    }
}

/// A matrix with these blocks.
pub(crate) fn of_blocks(
    bytes: Vec<u8>,
    dtype: GgmlDType,
    shape: (usize, usize),
    device: &Device,
) -> Result<QTensor> {
    // candle reads the blocks in place, which must lie at a multiple of a float's size.
    let bytes = match bytes.as_ptr().align_offset(size_of::<f32>()) {
        0 => bytes,
        _ => return aligned(&bytes, dtype, shape, device),
    };
    let storage = QStorage::from_data(Cow::Borrowed(&bytes), device, dtype)?;
    Ok(QTensor::new(storage, shape)?)
}

fn aligned(
    bytes: &[u8],
    dtype: GgmlDType,
    shape: (usize, usize),
    device: &Device,
) -> Result<QTensor> {
    let mut words = vec![0u32; bytes.len().div_ceil(size_of::<u32>())];
    let room: &mut [u8] = pulp::bytemuck::cast_slice_mut(&mut words);
    room[..bytes.len()].copy_from_slice(bytes);
    let storage = QStorage::from_data(Cow::Borrowed(&room[..bytes.len()]), device, dtype)?;
    Ok(QTensor::new(storage, shape)?)
}

fn open(path: &Path) -> Result<(File, Header)> {
    let failed = |error| Error::file(path, error);
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let header = header::read(&file, length, &MODEL);
    let header = header.map_err(|problem| Error::file(path, problem))?;
    let stacked = header.tensors.iter().find(|(_, info)| info.matrices > 1);
    match stacked {
        None => Ok((file, header)),
        Some((name, info)) => {
            let (name, kind) = (shorten(name), types::name(info.kind));
            let problem = format!(
                "`{name}` holds {} matrices of {kind}: mixtures of experts are not read",
                info.matrices
            );
            Err(Error::file(path, problem))
        }
    }
}

/// The files of the model of which this is the first one.
fn all_parts(path: &Path) -> Result<Vec<PathBuf>> {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some((stem, number, count)) = name.and_then(part_of) else {
        return Ok(vec![path.into()]);
    };
    if number != 1 || count > MAX_PARTS {
        let problem = format!("is part {number} of {count}: name the first, `{stem}-00001-of-..`");
        return Err(Error::file(path, problem));
    }
    let part = |number| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"));
    Ok((1..=count).map(part).collect())
}

/// The stem, number and count in the name of a part.
fn part_of(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let are_numbers = [number, count]
        .iter()
        .all(|text| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit()));
    are_numbers.then_some(())?;
    Some((stem, number.parse().ok()?, count.parse().ok()?))
}
