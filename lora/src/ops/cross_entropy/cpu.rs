//! On the CPU, by the kernels.

use super::{CrossEntropy, Labels};
use crate::kernels::adapted::Direction;
use crate::kernels::buffer::{Cpu, CpuMatrix, buffer, tensor};
use crate::kernels::cross_entropy::{Criterion, Label};
use crate::kernels::matrix::{Matrix, Threads, multiply};
use crate::kernels::quantised;
use crate::kernels::simd::Element;
use crate::ops::Blocks;
use candle_core::{DType, Result, Tensor};
use std::borrow::Cow;

/// Bytes of logits that are held at a time. Each block of rows reads the whole weight twice, so that
/// blocks are larger than a cache.
const LOGITS: usize = 64 << 20;

/// The same for a weight in blocks: reading it costs less, and memory is short where a weight is in blocks.
const LOGITS_OF_BLOCKS: usize = 16 << 20;

/// The layer in front of the loss, in the precision to compute in.
pub(super) struct Head<'a> {
    pub(super) weight: Weight<'a>,
    /// (classes)
    pub(super) bias: Option<Tensor>,
    /// Whether the gradients of x, weight and bias are asked for.
    pub(super) wanted: [bool; 3],
}

/// The head's weight, (classes, in).
pub(super) enum Weight<'a> {
    Full(Tensor),
    /// Frozen, in GGML's blocks.
    Blocks(&'a Blocks),
}

/// What computes products with the head's weight.
enum Product<'a, T> {
    Full(CpuMatrix<'a, T>),
    Blocks(quantised::Blocks<'a>),
}

impl<'a, T: Element> Product<'a, T> {
    fn of(weight: &'a Weight<'_>) -> Result<Self> {
        Ok(match weight {
            Weight::Full(weight) => Self::Full(CpuMatrix::of(weight)?),
            Weight::Blocks(blocks) => Self::Blocks(blocks.kernel()?),
        })
    }

    /// Classes and inputs.
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Full(weight) => weight.view().shape(),
            Self::Blocks(weight) => weight.shape(),
        }
    }

    /// The logits of rows of x, added to those that are there or in their place.
    fn logits(&self, logits: &mut [T], x: Matrix<'_, T>, values: &[T], add: bool) {
        match self {
            Self::Full(weight) => {
                multiply(logits, x, weight.view().t(), T::ONE, add, Threads::All);
            }
            Self::Blocks(weight) => {
                weight.multiply(logits, values, Direction::Forward, add, Threads::All);
            }
        }
    }

    /// The gradient of rows of x, by that of their logits.
    fn on_x(&self, on_x: &mut [T], logits: &[T]) {
        let (classes, inputs) = self.shape();
        match self {
            Self::Full(weight) => {
                let grad = Matrix::new(logits, on_x.len() / inputs.max(1), classes);
                multiply(on_x, grad, weight.view(), T::ONE, false, Threads::All);
            }
            Self::Blocks(weight) => {
                weight.multiply(on_x, logits, Direction::Backward, false, Threads::All);
            }
        }
    }
}

impl CrossEntropy {
    fn criterion<'a, T: Element>(&self, weights: Option<&'a [T]>) -> Criterion<'a, T> {
        Criterion {
            smoothing: self.smoothing,
            weights,
            scale: self.scale,
            soft_cap: self.soft_cap,
        }
    }

    /// The factor on the sum of the rows' losses.
    fn factor<T: Element>(&self, criterion: &Criterion<'_, T>, labels: &Labels) -> f64 {
        if self.sum {
            return 1.0;
        }
        let weights = labels.counted().map(|(_, label)| criterion.weight(label));
        match weights.sum::<f64>() {
            0.0 => 0.0,
            total => 1.0 / total,
        }
    }

    fn weights<T: Element>(&self) -> Result<Option<Cpu<'_, T>>> {
        self.weights.as_ref().map(Cpu::of).transpose()
    }

    /// The loss of logits.
    pub(super) fn loss<T: Element>(&self, logits: &Tensor, labels: &Labels) -> Result<Tensor> {
        let weights = self.weights::<T>()?;
        let criterion = self.criterion(weights.as_deref());
        let logits = Cpu::<T>::of(logits)?;
        let classes = logits.len().checked_div(labels.rows()).unwrap_or(0);
        let mut sum = 0.0;
        let size = rows_in_block::<T>(labels.rows(), classes, LOGITS);
        let mut block = Vec::new();
        for (index, labels) in labels.0.chunks(size).enumerate() {
            block.clear();
            block.extend_from_slice(&logits[index * size * classes..][..labels.len() * classes]);
            sum += criterion.rows(&mut block, labels, None);
        }
        scalar::<T>(sum * self.factor(&criterion, labels))
    }

    /// The gradient of logits, for this gradient of the loss.
    pub(super) fn gradient<T: Element>(
        &self,
        logits: &Tensor,
        labels: &Labels,
        grad: &Tensor,
    ) -> Result<Tensor> {
        let grad = grad.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let weights = self.weights::<T>()?;
        let criterion = self.criterion(weights.as_deref());
        let mut on_logits = Cpu::<T>::of(logits)?.to_vec();
        let factor = grad * self.factor(&criterion, labels);
        criterion.rows(&mut on_logits, &labels.0, Some(factor));
        tensor(on_logits, logits.shape())
    }

    /// The loss of the head's logits, and the gradients of x, weight and bias that are wanted.
    pub(super) fn linear<T: Element>(
        &self,
        x: &Tensor,
        head: &Head<'_>,
        labels: &Labels,
    ) -> Result<(Tensor, [Option<Tensor>; 3])> {
        let weights = self.weights::<T>()?;
        let criterion = self.criterion(weights.as_deref());
        let (weight, x) = (Product::<T>::of(&head.weight)?, Cpu::<T>::of(x)?);
        let bias = head.bias.as_ref().map(Cpu::<T>::of).transpose()?;
        let (classes, inputs) = weight.shape();
        let counted: Vec<(usize, u32)> = labels.counted().collect();
        let all = counted.len() == labels.rows();
        let kept = match all {
            true => Cow::Borrowed(&x[..]),
            false => Cow::Owned(gather(&x, &counted, inputs)),
        };
        let classes_of: Vec<Label> = counted.iter().map(|&(_, label)| Some(label)).collect();
        let [of_x, of_weight, of_bias] = head.wanted;
        let of = |wanted: bool, count: usize| wanted.then(|| vec![T::ZERO; count]);
        let mut on_x = of_x.then(|| buffer::<T>(kept.len()));
        let (mut on_weight, mut on_bias) = (of(of_weight, classes * inputs), of(of_bias, classes));
        let factor = self.factor(&criterion, labels);
        let wanted = (of_x || of_weight || of_bias).then_some(factor);

        let most = match weight {
            Product::Full(_) => LOGITS,
            Product::Blocks(_) => LOGITS_OF_BLOCKS,
        };
        let size = rows_in_block::<T>(counted.len(), classes, most);
        let mut block = buffer(size * classes);
        let mut sum = 0.0;
        for (index, labels) in classes_of.chunks(size).enumerate() {
            let first = index * size;
            let logits = &mut block[..labels.len() * classes];
            let values = &kept[first * inputs..][..labels.len() * inputs];
            let x = Matrix::new(values, labels.len(), inputs);
            if let Some(bias) = &bias {
                let rows = logits.chunks_mut(classes.max(1));
                rows.for_each(|row| row.copy_from_slice(bias));
            }
            weight.logits(logits, x, values, bias.is_some());
            sum += criterion.rows(logits, labels, wanted);
            if let Some(on_x) = &mut on_x {
                let on_x = &mut on_x[first * inputs..][..labels.len() * inputs];
                weight.on_x(on_x, logits);
            }
            if let Some(on_weight) = &mut on_weight {
                let grad = Matrix::new(logits, labels.len(), classes);
                multiply(on_weight, grad.t(), x, T::ONE, true, Threads::All);
            }
            if let Some(on_bias) = &mut on_bias {
                for row in logits.chunks(classes.max(1)) {
                    on_bias.iter_mut().zip(row).for_each(|(sum, &g)| *sum += g);
                }
            }
        }
        let on_x = on_x.map(|on_x| match all {
            true => on_x,
            false => scatter(&on_x, &counted, inputs, labels.rows()),
        });
        let shaped = |grad: Option<Vec<T>>, shape: &[usize]| {
            grad.map(|grad| tensor(grad, shape)).transpose()
        };
        let grads = [
            shaped(on_x, &[labels.rows(), inputs])?,
            shaped(on_weight, &[classes, inputs])?,
            shaped(on_bias, &[classes])?,
        ];
        Ok((scalar::<T>(sum * factor)?, grads))
    }
}

/// Rows in a block, for blocks of about the same size and of at most so many bytes.
fn rows_in_block<T>(rows: usize, classes: usize, most: usize) -> usize {
    let bytes = rows * classes * size_of::<T>();
    rows.div_ceil(bytes.div_ceil(most).max(1)).max(1)
}

fn scalar<T: Element>(value: f64) -> Result<Tensor> {
    tensor(vec![T::of(value)], ())
}

/// The rows that count.
fn gather<T: Element>(x: &[T], counted: &[(usize, u32)], width: usize) -> Vec<T> {
    let rows = counted.iter().map(|&(row, _)| &x[row * width..][..width]);
    rows.flatten().copied().collect()
}

/// Rows in their places among zeros.
fn scatter<T: Element>(
    values: &[T],
    counted: &[(usize, u32)],
    width: usize,
    rows: usize,
) -> Vec<T> {
    let mut all = vec![T::ZERO; rows * width];
    for (&(row, _), values) in counted.iter().zip(values.chunks(width.max(1))) {
        all[row * width..][..width].copy_from_slice(values);
    }
    all
}
