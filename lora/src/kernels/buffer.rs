//! Memory of tensors on the CPU.

use super::matrix::Matrix;
use super::simd::Element;
use candle_core::{Device, Result, Shape, Storage, StorageRef, Tensor, bail};
use std::marker::PhantomData;
use std::ops::Range;

/// The values of a contiguous tensor on the CPU, borrowed for reading until this is dropped.
pub(crate) struct Cpu<'a, T> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    element: PhantomData<T>,
}

impl<'a, T: Element> Cpu<'a, T> {
    /// # Errors
    /// If the tensor is of another dtype, not on the CPU or not contiguous.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("a kernel got a tensor that is not contiguous");
        };
        Self::range(storage, start..end, tensor)
    }

    /// The memory from a tensor's first value to its last; the tensor need not be contiguous.
    fn spanning(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let start = layout.start_offset();
        let steps = layout.dims().iter().zip(layout.stride());
        let end = match tensor.elem_count() {
            0 => start,
            _ => start + steps.map(|(dim, step)| (dim - 1) * step).sum::<usize>() + 1,
        };
        Self::range(storage, start..end, tensor)
    }

    fn range(storage: StorageRef<'a>, range: Range<usize>, tensor: &Tensor) -> Result<Self> {
        match &*storage {
            Storage::Cpu(values) if T::values(values).is_some_and(|v| range.end <= v.len()) => {}
            _ => bail!(
                "a kernel got a tensor of {:?} on {:?}",
                tensor.dtype(),
                tensor.device()
            ),
        }
        Ok(Self {
            storage,
            range,
            element: PhantomData,
        })
    }
}

impl<T: Element> std::ops::Deref for Cpu<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            // The type and the length were checked when this was made.
            Storage::Cpu(values) => T::values(values).map_or(&[], |v| &v[self.range.clone()]),
            _ => &[],
        }
    }
}

/// The values of a matrix on the CPU, with any steps between rows and columns.
pub(crate) struct CpuMatrix<'a, T> {
    values: Cpu<'a, T>,
    shape: (usize, usize),
    steps: (usize, usize),
}

impl<'a, T: Element> CpuMatrix<'a, T> {
    /// # Errors
    /// If the tensor is of another dtype, not on the CPU or not a matrix.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let shape = tensor.dims2()?;
        let steps = (tensor.stride()[0], tensor.stride()[1]);
        let values = Cpu::spanning(tensor)?;
        Ok(Self {
            values,
            shape,
            steps,
        })
    }

    pub(crate) fn view(&self) -> Matrix<'_, T> {
        Matrix::with_steps(&self.values, self.shape, self.steps)
    }
}

/// The values of a tensor of four dimensions on the CPU, with any steps along them.
pub(crate) struct CpuStrided<'a, T> {
    pub(crate) values: Cpu<'a, T>,
    pub(crate) steps: [usize; 4],
}

impl<'a, T: Element> CpuStrided<'a, T> {
    /// # Errors
    /// If the tensor is of another dtype, not on the CPU or not of four dimensions.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let &[a, b, c, d] = tensor.stride() else {
            bail!("a kernel got a tensor of shape {:?}", tensor.dims());
        };
        Ok(Self {
            values: Cpu::spanning(tensor)?,
            steps: [a, b, c, d],
        })
    }
}

/// Memory for `count` numbers with any content: overwrite each number before you read it.
///
/// Zeroing memory that is overwritten anyway costs as much as many a kernel.
pub(crate) fn buffer<T: Element>(count: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(count);
    // SAFETY: the capacity is there, any bits are an f32 or f64, and every caller writes each
    // number before it reads it.
    #[allow(clippy::uninit_vec)]
    unsafe {
        values.set_len(count);
    }
    values
}

/// The first `count` numbers of memory that is used again and again, with any content, as in
/// [`buffer`]. Fresh memory costs as much as many a kernel, too.
pub(crate) fn room<T: Element>(memory: &mut Vec<T>, count: usize) -> &mut [T] {
    if memory.len() < count {
        *memory = buffer(count);
    }
    &mut memory[..count]
}

/// A tensor of computed values.
pub(crate) fn tensor<T: Element>(values: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}
