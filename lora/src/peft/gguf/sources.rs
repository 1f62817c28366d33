//! What a pair of llama.cpp's tensors is made of: the update of a module, of one module for each
//! expert, or of a weight of all experts.

use crate::gguf::{names, rows};
use crate::ops;
use crate::peft::tensors::Tensors;
use candle_core::{DType, Device, Tensor};

/// The update of a module of the file.
#[derive(Clone, Debug)]
pub(super) struct Module {
    /// The module's path; behind it the parameter's name in a weight of all experts.
    pub path: String,
    /// True for an embedding.
    pub of_lookup: bool,
    pub rank: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// The keys of A and B in the file.
    pub keys: [String; 2],
    /// The update is B·A times this.
    pub scaling: f64,
}

#[derive(Debug)]
pub(super) enum Source {
    Module(Module),
    /// A module for each expert; those without an update have none.
    Experts(Vec<Option<Module>>),
    /// A weight of as many experts, of which these rows belong to this pair.
    Fused {
        module: Module,
        count: usize,
        from: usize,
    },
}

/// A and B as llama.cpp has them.
#[derive(Debug)]
pub(super) struct Pair {
    /// llama.cpp's name, without `.weight`.
    pub name: String,
    pub source: Source,
    pub inputs: usize,
    pub outputs: usize,
    /// For each row of B the row of the module's.
    pub order: Option<Vec<u32>>,
}

impl Source {
    fn modules(&self) -> impl Iterator<Item = &Module> {
        let modules: Vec<&Module> = match self {
            Self::Module(module) | Self::Fused { module, .. } => vec![module],
            Self::Experts(modules) => modules.iter().flatten().collect(),
        };
        modules.into_iter()
    }

    /// The number of experts.
    pub fn experts(&self) -> Option<usize> {
        match self {
            Self::Module(_) => None,
            Self::Experts(modules) => Some(modules.len()),
            Self::Fused { count, .. } => Some(*count),
        }
    }
}

impl Pair {
    /// For messages.
    pub fn path(&self) -> &str {
        let path = self.source.modules().next().map(|module| &module.path);
        path.map_or(self.name.as_str(), String::as_str)
    }

    /// The largest rank: experts share one.
    pub fn rank(&self) -> usize {
        let ranks = self.source.modules().map(|module| module.rank);
        ranks.max().unwrap_or(1)
    }

    /// Names, rows and columns of both tensors.
    pub fn tensors(&self) -> [(String, usize, usize); 2] {
        let name = |part| format!("{}.weight.{part}", self.name);
        let rank = self.rank();
        let (rows, columns) = match self.name == names::TOKENS {
            true => (self.inputs, rank),
            false => (rank, self.inputs),
        };
        [
            (name("lora_a"), rows, columns),
            (name("lora_b"), self.outputs, rank),
        ]
    }

    /// Both tensors. llama.cpp multiplies by `alpha` over the rank: B takes up what a module's
    /// scaling has beyond that.
    pub fn values(&self, file: &Tensors, alpha: f64, dtype: DType) -> Result<[Tensor; 2], String> {
        let rank = self.rank();
        let read = |module: &Module| -> Result<[Tensor; 2], String> {
            let load = |key: &str| {
                let tensor = file.tensor(key).map_err(|error| error.to_string())?;
                match tensor.dtype().is_float() {
                    true => Ok(tensor),
                    false => Err(format!("is {:?}: it must hold floats", tensor.dtype())),
                }
            };
            let (a, mut b) = (load(&module.keys[0])?, load(&module.keys[1])?);
            let factor = module.scaling * rank as f64 / alpha;
            if factor != 1.0 {
                let scaled = b.to_dtype(DType::F64).and_then(|b| b * factor);
                b = scaled.map_err(|error| error.to_string())?;
            }
            Ok([a, b])
        };
        let shape = |error: candle_core::Error| error.to_string();
        let [a, b] = match &self.source {
            Source::Module(module) => read(module)?,
            Source::Fused {
                module,
                count,
                from,
            } => {
                let [a, b] = read(module)?;
                split(&a, &b, *count, *from, self.outputs).map_err(shape)?
            }
            Source::Experts(modules) => {
                let mut pairs = Vec::new();
                for module in modules {
                    pairs.push(module.as_ref().map(read).transpose()?);
                }
                stack(pairs, rank, self.inputs, self.outputs).map_err(shape)?
            }
        };
        let convert = || -> candle_core::Result<[Tensor; 2]> {
            let a = match self.name == names::TOKENS {
                true => a.t()?.contiguous()?,
                false => a,
            };
            let b = match &self.order {
                Some(order) => rows::select(&b, order.clone())?,
                None => b,
            };
            Ok([a.to_dtype(dtype)?, b.to_dtype(dtype)?])
        };
        let pair = convert().map_err(|error| error.to_string())?;
        for tensor in &pair {
            if !ops::is_finite(tensor).map_err(|error| error.to_string())? {
                return Err(format!("holds values that are not finite in {dtype:?}"));
            }
        }
        Ok(pair)
    }
}

/// One A and B for each expert, of the largest rank.
fn stack(
    pairs: Vec<Option<[Tensor; 2]>>,
    rank: usize,
    inputs: usize,
    outputs: usize,
) -> candle_core::Result<[Tensor; 2]> {
    let (mut all_a, mut all_b) = (Vec::new(), Vec::new());
    for pair in pairs {
        let zeros = |shape| Tensor::zeros(shape, DType::F64, &Device::Cpu);
        let (a, b) = match pair {
            Some([a, b]) => (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?),
            None => (zeros((rank, inputs))?, zeros((outputs, rank))?),
        };
        let lacks = rank - a.dim(0)?;
        all_a.push(a.pad_with_zeros(0, 0, lacks)?);
        all_b.push(b.pad_with_zeros(1, 0, lacks)?);
    }
    Ok([Tensor::stack(&all_a, 0)?, Tensor::stack(&all_b, 0)?])
}

/// A (experts·r, in) and rows of B (out, r·experts) as one of each for each expert. PEFT keeps an
/// expert's rows of A together, and its columns of B `count` apart.
fn split(
    a: &Tensor,
    b: &Tensor,
    count: usize,
    from: usize,
    outputs: usize,
) -> candle_core::Result<[Tensor; 2]> {
    let rank = a.dim(0)? / count;
    let a = a.reshape((count, rank, a.dim(1)?))?;
    let b = b
        .narrow(0, from, outputs)?
        .reshape((outputs, rank, count))?;
    Ok([a, b.permute((2, 0, 1))?.contiguous()?])
}
