//! [`GgufFile`]: an open model; memory holds only its header.

use super::header::{self, Field, Header, Info, Wanted};
use super::{ALIGNMENT, types};
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
    kinds: types::holds_weights,
};

/// The tensors of a model in one GGUF file or in several. Each is read when it is asked for.
#[derive(Debug)]
pub(crate) struct GgufFile {
    path: PathBuf,
    paths: Vec<PathBuf>,
    parts: Vec<Mutex<File>>,
    ends: Vec<[u64; 2]>,
    pub(crate) fields: IndexMap<String, Field>,
    /// By the tensors' names: in which part they are, and where.
    tensors: IndexMap<String, (usize, Info)>,
}

impl GgufFile {
    /// Opens a file. If its name is that of the first of several parts, `..-00001-of-00003.gguf`, the
    /// others beside it belong to the model.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (mut parts, mut ends) = (Vec::new(), Vec::new());
        let (mut fields, mut tensors) = (IndexMap::new(), IndexMap::new());
        let paths = all_parts(path)?;
        for (index, place) in paths.iter().enumerate() {
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
            ends.push(header.ends);
        }
        if let Some(Field::Text(kind)) = fields.get("general.type")
            && kind != "model"
        {
            let problem = format!("is no model: `general.type` is {}", shorten(kind));
            return Err(Error::file(path, problem));
        }
        Ok(Self {
            path: path.into(),
            paths,
            parts,
            ends,
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

    /// The file that a tensor is in.
    pub(crate) fn part_of(&self, name: &str) -> usize {
        self.tensors.get(name).map_or(0, |(part, _)| *part)
    }

    /// The files that the model is in.
    pub(crate) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The multiple at which tensors begin.
    pub(crate) fn alignment(&self) -> u64 {
        match self.fields.get("general.alignment") {
            Some(Field::Unsigned(alignment)) => *alignment,
            _ => ALIGNMENT,
        }
    }

    /// Where a file's list of tensors ends, and where its data begin.
    pub(crate) fn ends(&self, part: usize) -> [u64; 2] {
        self.ends[part]
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

    /// The bytes of a tensor's matrix of this number: 0, but for experts.
    fn bytes(&self, name: &str, index: usize) -> Result<Vec<u8>> {
        let failed = |problem: String| Error::file(&self.path, format!("`{name}` {problem}"));
        let Some((part, info)) = self.tensors.get(name).filter(|of| index < of.1.matrices) else {
            return Err(failed("is not in the file".into()));
        };
        let (start, size) = info.matrix(index);
        let length = usize::try_from(size).map_err(|error| failed(error.to_string()))?;
        let mut bytes = Vec::new();
        let reserved = bytes.try_reserve_exact(length);
        reserved.map_err(|error| failed(error.to_string()))?;
        let file = self.parts[*part].lock();
        let mut file = file.unwrap_or_else(PoisonError::into_inner);
        let sought = file.seek(SeekFrom::Start(start));
        sought.map_err(|error| failed(error.to_string()))?;
        let read = (&mut *file).take(size).read_to_end(&mut bytes);
        read.map_err(|error| failed(error.to_string()))?;
        match bytes.len() == length {
            true => Ok(bytes),
            false => Err(failed("became shorter while it was read".into())),
        }
    }

    /// The matrix of this name and number in its blocks, with its rows in this order.
    pub(crate) fn blocks(
        &self,
        name: &str,
        index: usize,
        order: Option<&[u32]>,
        device: &Device,
    ) -> Result<QTensor> {
        let bytes = self.bytes(name, index)?;
        let info = &self.tensors[name].1;
        let bytes = match order {
            Some(order) => sorted(bytes, order),
            None => bytes,
        };
        of_blocks(bytes, info.kind, (info.rows, info.columns), device)
    }

    /// The values of a tensor in f32, (rows, columns); a vector is a single row.
    pub(crate) fn values(&self, name: &str) -> Result<Tensor> {
        let blocks = self.blocks(name, 0, None, &Device::Cpu)?;
        Ok(blocks.dequantize(&Device::Cpu)?)
    }
}

/// The rows in this order. A vector's rows are its values: a bias of queries or keys is in llama.cpp's order,
/// too.
fn sorted(bytes: Vec<u8>, order: &[u32]) -> Vec<u8> {
    let rows: Vec<&[u8]> = bytes.chunks_exact(bytes.len() / order.len()).collect();
    let sorted = order.iter().map(|&row| rows[row as usize]);
    sorted.collect::<Vec<_>>().concat()
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
    Ok((file, header))
}

/// The files of the model of which this is the first one.
pub(crate) fn all_parts(path: &Path) -> Result<Vec<PathBuf>> {
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
pub(super) fn part_of(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let are_numbers = [number, count]
        .iter()
        .all(|text| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit()));
    are_numbers.then_some(())?;
    Some((stem, number.parse().ok()?, count.parse().ok()?))
}
