//! [`Weights`]: the tensors of a model's file under transformers' names.

use super::families::{self, Family};
use super::file::GgufFile;
use super::header::Info;
use super::rows::{self, Heads};
use super::{archs, config, names};
use crate::error::shorten;
use crate::gguf::archs::Arch;
use crate::{Error, Result};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use indexmap::IndexMap;
use std::path::Path;

/// No model has more experts in a layer.
pub(crate) const MOST_EXPERTS: usize = 1 << 12;

/// The tensors of a model's file under transformers' names, with transformers' order of rows.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) file: GgufFile,
    arch: &'static Arch,
    family: Option<&'static Family>,
    places: IndexMap<String, Place>,
    /// Tensors that have no name in transformers.
    pub(crate) strangers: Vec<String>,
}

/// Where a parameter is in the file.
#[derive(Debug)]
pub(crate) struct Place {
    /// The parameter's shape.
    pub(crate) shape: Vec<usize>,
    /// One part; several where llama.cpp has the module's rows in several tensors.
    pub(crate) parts: Vec<Part>,
    has_one_more: bool,
}

/// A tensor of the file, or one of its matrices.
#[derive(Debug)]
pub(crate) struct Part {
    /// The tensor's name.
    pub(crate) name: String,
    /// The number of the expert.
    pub(crate) expert: Option<usize>,
    rows: usize,
    /// For each of the file's rows the parameter's row, unless all are in the same place.
    order: Option<Vec<u32>>,
}

impl Weights {
    /// Opens a file, or several: see [`GgufFile::open`].
    ///
    /// # Errors
    /// If a file is damaged, the architecture is not known, or the numbers of heads are missing or do not
    /// fit.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::read(path, archs::known)
    }

    /// As [`open`](Self::open), for a model whose architecture is read whole.
    pub(crate) fn open_whole(path: &Path) -> Result<(Self, &'static Family)> {
        let known = || format!("those read are {}", families::known());
        let weights = Self::read(path, known)?;
        match weights.family {
            Some(family) => Ok((weights, family)),
            None => Err(unknown(path, weights.arch.name, known())),
        }
    }

    fn read(path: &Path, known: impl Fn() -> String) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let name = file.text("general.architecture").unwrap_or_default();
        let Some(arch) = archs::named(name) else {
            return Err(unknown(path, name, known()));
        };
        let family = families::named(name);
        let mut weights = Self {
            file,
            arch,
            family,
            places: IndexMap::new(),
            strangers: Vec::new(),
        };
        let names: Vec<String> = weights.file.names().map(String::from).collect();
        for name in names {
            weights
                .add(name)
                .map_err(|problem| Error::file(path, problem))?;
        }
        weights
            .sort_rows()
            .map_err(|problem| Error::file(path, problem))?;
        Ok(weights)
    }

    /// Finds the parameter of a tensor, or the parameters of one for each expert.
    fn add(&mut self, name: String) -> Result<(), String> {
        let Some(info) = self.file.info(&name) else {
            return Ok(());
        };
        let (rows, columns, experts) = (info.rows, info.columns, info.matrices);
        let split = name.rsplit_once('.');
        let Some((module, part)) = split.filter(|(_, part)| ["weight", "bias"].contains(part))
        else {
            self.strangers.push(name);
            return Ok(());
        };
        let norm = self.family.and_then(|of| of.norm(self.arch, module));
        let has_one_more = norm.as_ref().is_some_and(|norm| norm.has_one_more) && part == "weight";
        let is_vector = (norm.is_some() || part == "bias") && rows == 1;
        let path = norm.map(|norm| norm.path);
        let Some(path) = path.or_else(|| names::from_gguf(self.arch, module)) else {
            self.strangers.push(name);
            return Ok(());
        };
        let of_experts = path.contains('*');
        if experts > MOST_EXPERTS {
            return Err(format!(
                "`{}` holds {experts} experts: at most {MOST_EXPERTS} are read",
                shorten(&name)
            ));
        }
        for expert in 0..experts {
            let path = path.replace('*', &expert.to_string());
            let place = self.places.entry(format!("{path}.{part}"));
            let place = place.or_insert_with(|| Place {
                shape: if is_vector { vec![0] } else { vec![0, columns] },
                parts: Vec::new(),
                has_one_more,
            });
            let fits = place.shape.get(1).copied().unwrap_or(columns) == columns;
            if !fits || (!place.parts.is_empty() && self.arch.rows != archs::Rows::Split) {
                return Err(format!("`{}` does not fit beside others", shorten(&name)));
            }
            place.shape[0] += if is_vector { columns } else { rows };
            place.parts.push(Part {
                name: name.clone(),
                expert: of_experts.then_some(expert),
                rows: if is_vector { columns } else { rows },
                order: None,
            });
        }
        Ok(())
    }

    /// Finds each parameter's order of rows.
    fn sort_rows(&mut self) -> Result<(), String> {
        let heads = self.heads();
        for place in self.places.values_mut() {
            let count = place.shape[0];
            for part in &mut place.parts {
                let module = part
                    .name
                    .rsplit_once('.')
                    .map_or(&*part.name, |(name, _)| name);
                part.order = rows::order(self.arch, module, count, heads)?;
                let ordered = part.order.as_ref().map_or(part.rows, Vec::len);
                if ordered != part.rows {
                    return Err(format!(
                        "`{}` has {} rows, by the numbers of heads {ordered} are expected",
                        shorten(&part.name),
                        part.rows
                    ));
                }
            }
        }
        Ok(())
    }

    /// How many heads the metadata name.
    fn heads(&self) -> Heads {
        let count = |key: &str| {
            self.file
                .count(&format!("{}.attention.{key}", self.arch.name))
        };
        let queries = count("head_count");
        Heads {
            queries,
            keys: count("head_count_kv").or(queries),
            of_file: true,
        }
    }

    /// True for a tensor without a name in transformers that is no weight either.
    pub(crate) fn is_table(name: &str) -> bool {
        config::TABLES.contains(&name)
    }

    /// The parameters' names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    pub(crate) fn place(&self, name: &str) -> Option<&Place> {
        self.places.get(name)
    }

    /// The parameter's tensor in the file.
    pub(crate) fn info(&self, name: &str) -> Option<&Info> {
        self.file.info(&self.place(name)?.parts[0].name)
    }

    /// llama.cpp's name of a parameter, whether the file has it or not.
    pub(crate) fn in_file(&self, parameter: &str) -> Option<String> {
        let (module, part) = parameter.rsplit_once('.')?;
        let norm = self
            .family
            .and_then(|of| of.norm_in_file(self.arch, module));
        let place = || Some(names::to_gguf(self.arch, module).into_iter().next()?.name);
        Some(format!("{}.{part}", norm.or_else(place)?))
    }

    fn find(&self, name: &str) -> Result<&Place> {
        let missing = || Error::file(self.file.path(), format!("has no `{name}`"));
        self.place(name).ok_or_else(missing)
    }

    /// The values of a parameter in f32.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        let place = self.find(name)?;
        let mut rows = Vec::new();
        for part in &place.parts {
            let values = self.blocks_of(part, None, &Device::Cpu)?;
            let values = values.dequantize(&Device::Cpu)?;
            rows.push(match place.shape.len() {
                1 => values.flatten_all()?,
                _ => values,
            });
        }
        let mut values = match &rows[..] {
            [one] => one.clone(),
            _ => Tensor::cat(&rows, 0)?,
        };
        if let Some(order) = place.order() {
            values = rows::select(&values, rows::inverse(&order))?;
        }
        if place.has_one_more {
            values = (values - 1.0)?;
        }
        Ok(values)
    }

    /// The blocks of a matrix; `None` where the file has its rows in several tensors.
    pub(crate) fn blocks(&self, name: &str, device: &Device) -> Result<Option<QTensor>> {
        let place = self.find(name)?;
        let [part] = &place.parts[..] else {
            return Ok(None);
        };
        let order = part.order.as_deref().map(rows::inverse);
        Ok(Some(self.blocks_of(part, order.as_deref(), device)?))
    }

    fn blocks_of(&self, part: &Part, order: Option<&[u32]>, device: &Device) -> Result<QTensor> {
        let index = part.expert.unwrap_or(0);
        self.file.blocks(&part.name, index, order, device)
    }

    /// The values of a parameter as the file's tensors hold them: the way back of
    /// [`tensor`](Self::tensor).
    pub(crate) fn to_file<'a>(
        &'a self,
        name: &str,
        values: &Tensor,
    ) -> Result<Vec<(&'a Part, Tensor)>> {
        let place = self.find(name)?;
        let values = match place.has_one_more {
            true => (values + 1.0)?,
            false => values.clone(),
        };
        let mut from = 0;
        let mut all = Vec::new();
        for part in &place.parts {
            let rows = match &part.order {
                Some(order) => rows::select(&values, order.clone())?,
                None => values.narrow(0, from, part.rows)?,
            };
            from += part.rows;
            all.push((part, rows));
        }
        Ok(all)
    }

    /// The type that holds a parameter.
    pub(crate) fn kind(&self, name: &str) -> Option<GgmlDType> {
        self.info(name).map(|info| info.kind)
    }
}

fn unknown(path: &Path, arch: &str, known: String) -> Error {
    let problem = format!("is of the architecture \"{}\": {known}", shorten(arch));
    Error::file(path, problem)
}

impl Place {
    /// For each of the file's rows the parameter's row, over all parts.
    fn order(&self) -> Option<Vec<u32>> {
        let orders = self.parts.iter().map(|part| part.order.as_deref());
        let orders: Option<Vec<&[u32]>> = orders.collect();
        orders.map(|orders| orders.concat())
    }
}

impl Part {
    /// For messages and reports.
    pub(crate) fn title(&self) -> String {
        match self.expert {
            Some(expert) => format!("{}[{expert}]", self.name),
            None => self.name.clone(),
        }
    }
}
