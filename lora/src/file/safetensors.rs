//! [`TensorFile`]: an open safetensors file; memory holds only its header.

use crate::{Error, Result};
use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use indexmap::IndexMap;
use safetensors::tensor::{Metadata, TensorInfo, TensorView};
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::HashMap;
use std::fmt::Debug;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The largest header that is read: the limit of the safetensors library.
const MAX_HEADER: u64 = 100_000_000;

/// How many bytes of a tensor are in memory while the tensor is copied.
const CHUNK: u64 = 1 << 20;

/// A file of a checkpoint. Each tensor is read when it is asked for.
pub(crate) trait Shard: Debug + Send + Sync {
    /// Where the file is.
    fn path(&self) -> &Path;

    /// The name that the file has in a directory of transformers.
    fn name(&self) -> Option<&str>;

    /// Dtypes and shapes, in the order of the data.
    fn tensors(&self) -> &IndexMap<String, TensorInfo>;

    /// The texts in the header.
    fn metadata(&self) -> Option<&HashMap<String, String>>;

    /// A tensor, on the CPU.
    fn tensor(&self, name: &str) -> Result<Tensor>;

    /// Writes a tensor's bytes.
    fn copy(&self, name: &str, to: &mut dyn Write) -> Result<()>;
}

impl Shard for TensorFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }

    fn tensors(&self) -> &IndexMap<String, TensorInfo> {
        &self.tensors
    }

    fn metadata(&self) -> Option<&HashMap<String, String>> {
        self.metadata.as_ref()
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.tensor(name)
    }

    /// Copies piece by piece.
    fn copy(&self, name: &str, to: &mut dyn Write) -> Result<()> {
        let info = self.find(name)?;
        let mut left = (info.data_offsets.1 - info.data_offsets.0) as u64;
        let mut file = self.at(info)?;
        let mut buffer = vec![0; CHUNK.min(left) as usize];
        while left > 0 {
            let piece = &mut buffer[..CHUNK.min(left) as usize];
            let copied = file.read_exact(piece).and_then(|()| to.write_all(piece));
            copied.map_err(|error| Error::file(&self.path, error))?;
            left -= piece.len() as u64;
        }
        Ok(())
    }
}

/// An open file. Each tensor is read when it is asked for.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    file: Mutex<File>,
    /// The offset at which the tensors' data begin.
    start: u64,
    /// In the order of their data in the file.
    tensors: IndexMap<String, TensorInfo>,
    metadata: Option<HashMap<String, String>>,
}

impl TensorFile {
    /// Opens a file and checks its header: the header's length, that no name comes twice, and that
    /// the tensors follow each other without a gap from the header to the end of the file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let invalid = |problem: String| {
            Error::file(path, format!("is no valid file of safetensors: {problem}"))
        };
        let mut file = File::open(path).map_err(|error| Error::file(path, error))?;
        let length = file.metadata().map_err(|error| Error::file(path, error))?;
        let length = length.len();
        let mut size = [0; 8];
        let read = file.read_exact(&mut size);
        read.map_err(|_| invalid("it is too short for a header".into()))?;
        let size = u64::from_le_bytes(size);
        // Checked before the header is read: a damaged file may claim any length.
        if size > MAX_HEADER || size > length.saturating_sub(8) {
            return Err(invalid(format!("its header would have {size} bytes")));
        }
        let mut json = Vec::new();
        let read = (&file).take(size).read_to_end(&mut json);
        read.map_err(|error| Error::file(path, error))?;
        let header = header(&json).map_err(|error| invalid(error.to_string()))?;
        let mut tensors = header.tensors;
        // `Metadata` checks that each tensor begins where the one before ends, in this order.
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let checked = Metadata::new(None, tensors.clone());
        let checked = checked.map_err(|error| invalid(error.to_string()))?;
        let start = 8 + size;
        let whole = start.checked_add(checked.data_len() as u64);
        if whole != Some(length) {
            return Err(invalid(format!(
                "its tensors do not fill the file exactly: the header asks for {} bytes, the file has \
                 {length}; the file was cut off or damaged",
                whole.unwrap_or(u64::MAX)
            )));
        }
        Ok(Self {
            path: path.into(),
            file: Mutex::new(file),
            start,
            tensors: tensors.into_iter().collect(),
            metadata: header.metadata,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn tensors(&self) -> &IndexMap<String, TensorInfo> {
        &self.tensors
    }

    /// The shape of a tensor, if the file has it.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.shape)
    }

    pub(crate) fn metadata(&self) -> Option<&HashMap<String, String>> {
        self.metadata.as_ref()
    }

    fn find(&self, name: &str) -> Result<&TensorInfo> {
        let found = self.tensors.get(name);
        found.ok_or_else(|| Error::file(&self.path, format!("has no tensor `{name}`")))
    }

    fn at(&self, info: &TensorInfo) -> Result<std::sync::MutexGuard<'_, File>> {
        // A panic elsewhere can leave the file at any position. Every reader seeks first, so that a
        // poisoned lock is no reason to fail.
        let mut file = self
            .file
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let place = self.start + info.data_offsets.0 as u64;
        let sought = file.seek(SeekFrom::Start(place));
        sought.map_err(|error| Error::file(&self.path, error))?;
        Ok(file)
    }

    /// The bytes of a tensor.
    fn bytes(&self, info: &TensorInfo) -> Result<Vec<u8>> {
        let size = info.data_offsets.1 - info.data_offsets.0;
        let mut bytes = Vec::new();
        // A tensor can be larger than the memory at hand: an error then, not an abort.
        let reserved = bytes.try_reserve_exact(size);
        reserved.map_err(|error| Error::file(&self.path, error))?;
        let mut file = self.at(info)?;
        let read = (&mut *file).take(size as u64).read_to_end(&mut bytes);
        read.map_err(|error| Error::file(&self.path, error))?;
        if bytes.len() != size {
            return Err(Error::file(&self.path, "became shorter while it was read"));
        }
        Ok(bytes)
    }

    /// A tensor, on the CPU and in the file's dtype.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.find(name)?;
        let bytes = self.bytes(info)?;
        let load = || -> candle_core::Result<Tensor> {
            let view = TensorView::new(info.dtype, info.shape.clone(), &bytes);
            let view = view.map_err(candle_core::Error::wrap)?;
            view.load(&Device::Cpu)
        };
        load().map_err(|error| Error::file(&self.path, format!("`{name}`: {error}")))
    }
}

struct Header {
    tensors: Vec<(String, TensorInfo)>,
    metadata: Option<HashMap<String, String>>,
}

/// Reads a header. A name that comes twice is an error; serde_json would silently take the last.
fn header(json: &[u8]) -> Result<Header, serde_json::Error> {
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = Header;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object of tensors")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
            let mut tensors: IndexMap<String, TensorInfo> = IndexMap::new();
            let mut metadata = None;
            while let Some(name) = map.next_key::<String>()? {
                let twice = if name == "__metadata__" {
                    let value: HashMap<String, String> = map.next_value()?;
                    metadata.replace(value).is_some()
                } else {
                    tensors.insert(name.clone(), map.next_value()?).is_some()
                };
                if twice {
                    let name = crate::error::shorten(&name);
                    return Err(serde::de::Error::custom(format!("`{name}` comes twice")));
                }
            }
            let tensors = tensors.into_iter().collect();
            Ok(Header { tensors, metadata })
        }
    }

    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let header = deserializer.deserialize_map(Entries)?;
    deserializer.end()?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(header: &str, data: &[u8]) -> Result<TensorFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        std::fs::write(&path, bytes).unwrap();
        TensorFile::open(&path)
    }

    fn entry(name: &str, shape: &str, from: u64, to: u64) -> String {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    }

    #[test]
    fn tensors_are_read_where_they_are() {
        let (a, b) = (entry("a", "[1]", 4, 8), entry("b", "[1]", 0, 4));
        let data = [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat();
        let file = open(
            &format!("{{{a},{b},\"__metadata__\":{{\"k\":\"v\"}}}}  "),
            &data,
        )
        .unwrap();
        let names: Vec<_> = file.tensors().keys().collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(file.tensor("a").unwrap().to_vec1::<f32>().unwrap(), [2.0]);
        let mut copy = Vec::new();
        file.copy("b", &mut copy).unwrap();
        assert_eq!(copy, 1f32.to_le_bytes());
        assert_eq!(file.metadata().unwrap()["k"], "v");
        assert!(file.tensor("c").is_err());
    }

    #[test]
    fn wrong_headers_are_errors() {
        let huge = u64::MAX / 4;
        let (a, b) = (entry("a", "[1]", 0, 4), entry("b", "[1]", 0, 4));
        for (header, word) in [
            (format!("{{{a},{a}}}"), "`a` comes twice"),
            (format!("{{{a},{b}}}"), "invalid offset"),
            (format!("{{{}}}", entry("a", "[1]", 4, 8)), "invalid offset"),
            (format!("{{{}}}", entry("a", "[2]", 0, 8)), "exactly"),
            (format!("{{{}}}", entry("a", "[1]", 4, 0)), "offset"),
            (format!("{{{}}}", entry("a", "[2]", 0, 4)), "shape"),
            (
                format!("{{{}}}", entry("a", &format!("[{huge},{huge}]"), 0, 4)),
                "overflow",
            ),
            (
                format!("{{{}}}", entry("a", &format!("[{huge}]"), 0, huge)),
                "overflow",
            ),
            (
                format!("{{{}}}", entry("a", "[-1]", 0, 4)),
                "is no valid file",
            ),
            ("{}".into(), "exactly"),
            ("[]".into(), "is no valid file"),
            (format!("{{{a}}} x"), "is no valid file"),
            ("[".repeat(100_000), "is no valid file"),
            (
                format!("{{\"a\":{}", "{\"a\":".repeat(100_000)),
                "is no valid file",
            ),
            (
                format!("{{{}}}", a.replace("F32", "Q7")),
                "is no valid file",
            ),
            ("{\"__metadata__\":{\"a\":1}}".into(), "is no valid file"),
        ] {
            let error = open(&header, &[0; 4]).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for length in [0u64, 100, 100_000_001, u64::MAX] {
            for bytes in [&length.to_le_bytes()[..], &length.to_le_bytes()[..5]] {
                std::fs::write(&path, bytes).unwrap();
                assert!(TensorFile::open(&path).is_err());
            }
        }
        assert!(TensorFile::open(&dir.path().join("absent")).is_err());
        assert!(TensorFile::open(dir.path()).is_err());
    }

    /// Opening allocates no memory for the lengths that a header claims.
    #[test]
    fn a_large_empty_file_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let header = format!(
            "{{{}}}",
            entry("a", "[1000000000000]", 0, 4_000_000_000_000)
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        // Not every file system holds a file of this length, even if it is empty.
        if file.set_len(bytes.len() as u64 + 4_000_000_000_000).is_ok() {
            let file = TensorFile::open(&path).unwrap();
            assert_eq!(file.tensors()["a"].shape, [1_000_000_000_000]);
        }
    }
}
