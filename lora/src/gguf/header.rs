//! The header of a GGUF file, read within bounds.

use super::{ALIGNMENT, names, types};
use crate::error::shorten;
use candle_core::quantized::GgmlDType;
use indexmap::{IndexMap, IndexSet};
use std::fs::File;
use std::io::{BufReader, Read};

/// No adapter or model has a header larger than this.
const MAX_HEADER: u64 = 64 << 20;
/// No key or name is longer than this.
const MAX_NAME: u64 = 1 << 16;
/// How deep lists may be nested. llama.cpp never nests lists.
const MAX_DEPTH: u32 = 4;
const MAX_ALIGNMENT: u64 = 1 << 20;

/// The value of a field. Values that do not matter are passed over.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Field {
    Float(f64),
    Unsigned(u64),
    Signed(i64),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    /// Numbers or flags of one type.
    Numbers(Vec<f64>),
    Other,
}

/// A tensor: matrices of rows of values, as ggml holds them, and where they are.
#[derive(Clone, Debug)]
pub(crate) struct Info {
    /// More than one matrix for experts only.
    pub(crate) matrices: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) kind: GgmlDType,
    /// From the beginning of the file.
    pub(crate) start: u64,
    pub(crate) size: u64,
}

impl Info {
    /// Where a matrix begins, and its size.
    pub(crate) fn matrix(&self, index: usize) -> (u64, u64) {
        let size = self.size / self.matrices as u64;
        (self.start + index as u64 * size, size)
    }
}

/// What a reader takes of a file.
pub(crate) struct Wanted {
    /// Whether the value of a key is kept.
    pub(crate) keeps: fn(&str) -> bool,
    /// The types that tensors may have.
    pub(crate) kinds: fn(GgmlDType) -> bool,
}

#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) fields: IndexMap<String, Field>,
    pub(crate) tensors: IndexMap<String, Info>,
    /// Where the list of tensors ends, and where the data begin.
    pub(crate) ends: [u64; 2],
}

/// Reads the header of a file of this length.
pub(crate) fn read(file: &File, length: u64, wanted: &Wanted) -> Result<Header, String> {
    let mut reader = Reader {
        from: BufReader::new(file),
        at: 0,
        end: length.min(MAX_HEADER),
    };
    let magic = reader.array::<4>()?;
    if &magic != b"GGUF" {
        return Err("is no GGUF file".into());
    }
    match reader.u32()? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 2 | 3) => {
            return Err("is a big-endian GGUF file: only little-endian files are read".into());
        }
        version => {
            return Err(format!(
                "is of GGUF version {version}: only 2 and 3 are read"
            ));
        }
    }
    let (tensors, fields) = (reader.u64()?, reader.u64()?);
    // A count is believed only if the file could hold that many of the smallest entries.
    reader.can_hold(fields, 8 + 4 + 1, "fields")?;
    let fields = read_fields(&mut reader, fields, wanted.keeps)?;
    reader.can_hold(tensors, 8 + 4 + 4 + 8, "tensors")?;
    let alignment = match fields.get("general.alignment") {
        None => ALIGNMENT,
        Some(Field::Unsigned(n)) if n.is_power_of_two() && *n <= MAX_ALIGNMENT => *n,
        Some(other) => {
            return Err(format!(
                "has `general.alignment` {other:?}: it must be a power of two of at most 2^20"
            ));
        }
    };
    let mut infos = IndexMap::new();
    for _ in 0..tensors {
        let name = reader.name()?;
        let may_stack = names::is_of_experts(name.split(".weight").next().unwrap_or(&name));
        let info = read_info(&mut reader, [length, alignment], may_stack, wanted.kinds);
        let info = info.map_err(|problem| format!("`{}` {problem}", shorten(&name)))?;
        if infos.contains_key(&name) {
            return Err(format!("`{}` comes twice", shorten(&name)));
        }
        infos.insert(name, info);
    }
    let data = reader.at.next_multiple_of(alignment);
    place(&mut infos, data, length)?;
    Ok(Header {
        fields,
        tensors: infos,
        ends: [reader.at, data],
    })
}

fn read_fields(
    reader: &mut Reader,
    count: u64,
    keeps: fn(&str) -> bool,
) -> Result<IndexMap<String, Field>, String> {
    let mut seen = IndexSet::new();
    let mut fields = IndexMap::new();
    for _ in 0..count {
        let key = reader.name()?;
        let kind = reader.u32()?;
        let kept = key.starts_with("general.") || keeps(&key);
        let field = reader.field(kind, kept);
        let field = field.map_err(|problem| format!("`{}` {problem}", shorten(&key)))?;
        if !seen.insert(key.clone()) {
            return Err(format!("`{}` comes twice", shorten(&key)));
        }
        if kept {
            fields.insert(key, field);
        }
    }
    Ok(fields)
}

/// Reads a tensor's entry. Its start counts from the beginning of the data.
fn read_info(
    reader: &mut Reader,
    [length, alignment]: [u64; 2],
    may_stack: bool,
    kinds: fn(GgmlDType) -> bool,
) -> Result<Info, String> {
    let dims = reader.u32()?;
    if dims == 0 || dims > 4 {
        return Err(format!("has {dims} dimensions: it must have 1 to 4"));
    }
    let mut shape = Vec::new();
    for _ in 0..dims {
        shape.push(reader.u64()?);
    }
    let kind = reader.u32()?;
    let start = reader.u64()?;
    // Trailing dimensions of 1 may be left out.
    let columns = shape[0];
    let rows = shape.get(1).copied().unwrap_or(1);
    let matrices = shape.get(2).copied().filter(|_| may_stack).unwrap_or(1);
    let known = if may_stack { 3 } else { 2 };
    if shape.iter().skip(known).any(|n| *n != 1) || [columns, rows, matrices].contains(&0) {
        return Err(format!("has shape {shape:?}, which is no matrix"));
    }
    let found = types::of(kind).filter(|found| kinds(*found));
    let kind = found
        .ok_or_else(|| format!("has the data type {kind}: {} are read", types::list(kinds)))?;
    let size = types::row_size(kind, columns).and_then(|row| row.checked_mul(rows));
    let size = size.and_then(|size| size.checked_mul(matrices));
    let size = size.filter(|size| *size <= length);
    let size =
        size.ok_or_else(|| format!("has shape {shape:?} of {kind:?}, which the file cannot hold"))?;
    if !start.is_multiple_of(alignment) {
        return Err(format!(
            "begins at {start}, which is no multiple of {alignment}"
        ));
    }
    let too_large = |_| "is too large for this machine".to_string();
    Ok(Info {
        matrices: usize::try_from(matrices).map_err(too_large)?,
        rows: usize::try_from(rows).map_err(too_large)?,
        columns: usize::try_from(columns).map_err(too_large)?,
        kind,
        start,
        size,
    })
}

/// Makes each start count from the beginning of the file, and checks that no tensor lies in another
/// or outside the file.
fn place(infos: &mut IndexMap<String, Info>, data: u64, length: u64) -> Result<(), String> {
    // Sorted, so that each tensor need only be compared with the end of the one before.
    infos.sort_by(|_, a, _, b| a.start.cmp(&b.start));
    let mut free = data;
    for (name, info) in infos {
        let place = data.checked_add(info.start).and_then(|start| {
            let end = start.checked_add(info.size)?;
            (end <= length).then_some((start, end))
        });
        let name = shorten(name);
        let (start, end) = place.ok_or_else(|| format!("`{name}` ends outside the file"))?;
        if start < free {
            return Err(format!("`{name}` lies in the data of another tensor"));
        }
        info.start = start;
        free = end;
    }
    Ok(())
}

struct Reader<'a> {
    from: BufReader<&'a File>,
    at: u64,
    /// Nothing is read beyond this place.
    end: u64,
}

impl Reader<'_> {
    fn advance(&mut self, count: u64) -> Result<(), String> {
        if count > self.end - self.at {
            return Err("ends within its header, or has a header larger than 64 MiB".into());
        }
        self.at += count;
        Ok(())
    }

    fn can_hold(&self, count: u64, size: u64, what: &str) -> Result<(), String> {
        match count.checked_mul(size) {
            Some(all) if all <= self.end - self.at => Ok(()),
            _ => Err(format!("would have {count} {what}, more than it can hold")),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.advance(N as u64)?;
        let mut bytes = [0; N];
        let read = self.from.read_exact(&mut bytes);
        read.map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn skip(&mut self, count: u64) -> Result<(), String> {
        self.advance(count)?;
        let skipped = std::io::copy(&mut (&mut self.from).take(count), &mut std::io::sink());
        match skipped {
            Ok(skipped) if skipped == count => Ok(()),
            Ok(_) => Err("became shorter while it was read".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn name(&mut self) -> Result<String, String> {
        let length = self.u64()?;
        if length > MAX_NAME {
            return Err(format!("has a name of {length} bytes, more than 65536"));
        }
        let bytes = self.bytes(length)?;
        String::from_utf8(bytes).map_err(|_| "has a name that is not UTF-8".into())
    }

    fn bytes(&mut self, length: u64) -> Result<Vec<u8>, String> {
        self.advance(length)?;
        let mut bytes = vec![0; length as usize];
        let read = self.from.read_exact(&mut bytes);
        read.map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    fn field(&mut self, kind: u32, kept: bool) -> Result<Field, String> {
        Ok(match kind {
            0 => Field::Unsigned(self.array::<1>()?[0].into()),
            1 => Field::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Field::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Field::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Field::Unsigned(self.u32()?.into()),
            5 => Field::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Field::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Field::Flag(self.array::<1>()?[0] != 0),
            10 => Field::Unsigned(self.u64()?),
            11 => Field::Signed(i64::from_le_bytes(self.array()?)),
            12 => Field::Float(f64::from_le_bytes(self.array()?)),
            8 if kept => {
                // Long texts, such as licences, do not matter.
                let length = self.u64()?;
                if length > MAX_NAME {
                    self.skip(length)?;
                    return Ok(Field::Other);
                }
                Field::Text(String::from_utf8_lossy(&self.bytes(length)?).into_owned())
            }
            9 if kept => self.list()?,
            _ => {
                self.skip_value(kind, 0)?;
                Field::Other
            }
        })
    }

    fn list(&mut self) -> Result<Field, String> {
        let (kind, count) = (self.u32()?, self.u64()?);
        self.can_hold(count, size_of(kind).unwrap_or(8), "values")?;
        if kind == 8 {
            let texts = (0..count).map(|_| self.name());
            return Ok(Field::Texts(texts.collect::<Result<_, _>>()?));
        }
        if size_of(kind).is_none() {
            (0..count).try_for_each(|_| self.skip_value(kind, 1))?;
            return Ok(Field::Other);
        }
        let numbers = (0..count).map(|_| {
            Ok(match self.field(kind, false)? {
                Field::Float(number) => number,
                Field::Unsigned(number) => number as f64,
                Field::Signed(number) => number as f64,
                Field::Flag(flag) => f64::from(u8::from(flag)),
                _ => f64::NAN,
            })
        });
        Ok(Field::Numbers(numbers.collect::<Result<_, String>>()?))
    }

    fn skip_value(&mut self, kind: u32, depth: u32) -> Result<(), String> {
        if let Some(size) = size_of(kind) {
            return self.skip(size);
        }
        match kind {
            8 => {
                let length = self.u64()?;
                self.skip(length)
            }
            9 if depth < MAX_DEPTH => {
                let (kind, count) = (self.u32()?, self.u64()?);
                if let Some(size) = size_of(kind) {
                    self.can_hold(count, size, "values")?;
                    return self.skip(count * size);
                }
                self.can_hold(count, 8, "values")?;
                (0..count).try_for_each(|_| self.skip_value(kind, depth + 1))
            }
            9 => Err("has lists within lists within lists".into()),
            _ => Err(format!("has a value of type {kind}, which is not known")),
        }
    }
}

/// Bytes of a value of this type, if all its values have the same size.
fn size_of(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}
