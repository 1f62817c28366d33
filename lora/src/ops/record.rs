//! [`record`]: a node of the graph whose value was computed outside of it.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, InplaceOp1, Layout,
    MetalStorage, Result, Shape, Storage, Tensor, bail,
};
use std::sync::{Mutex, PoisonError};

/// Puts `value`, computed from `args` without a graph, into the graph with this derivative.
///
/// `backward` gets the gradient of the value, the value, and which arguments want theirs: those that
/// lead to a variable. An argument that does not is no part of the node, so nothing is computed or kept for
/// it. Without any tracked argument the value is returned as it is. At most three can be tracked.
///
/// `value` must own its storage: freshly computed, not a view of anything.
pub(crate) fn record<const N: usize>(
    name: &'static str,
    args: [&Tensor; N],
    value: Tensor,
    backward: impl Fn(&Tensor, &Tensor, [bool; N]) -> Result<[Option<Tensor>; N]>
    + Send
    + Sync
    + 'static,
) -> Result<Tensor> {
    let wanted = args.map(Tensor::track_op);
    let tracked: Vec<&Tensor> = args.into_iter().filter(|arg| arg.track_op()).collect();
    if tracked.is_empty() {
        return Ok(value);
    }
    // Candle refuses to change an empty tensor in place; any storage will do for one.
    let shape = value.shape().clone();
    let value = match value.elem_count() {
        0 => Tensor::zeros(1, value.dtype(), value.device())?,
        _ => value,
    };
    let node = Node {
        name,
        shape,
        value: Mutex::new(Some(take_storage(&value)?)),
        backward: Box::new(move |grad, value| {
            let grads = backward(&grad.contiguous()?, &value.detach(), wanted)?;
            let grads = grads.into_iter().zip(wanted);
            // Candle expects a gradient for every argument of a node.
            let grads = grads.filter(|(_, wanted)| *wanted).map(|(grad, _)| grad);
            Ok(grads.collect())
        }),
    };
    match tracked[..] {
        [x] => x.apply_op1(node),
        [x, y] => x.apply_op2(y, node),
        [x, y, z] => x.apply_op3(y, z, node),
        _ => bail!("{name}: more than three tracked arguments"),
    }
}

/// True if no value is NaN or infinite.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool> {
    // 0 · x is NaN for what is not finite, and NaN stays NaN in a sum.
    let wide = match tensor.dtype() {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
    let sum = (tensor.to_dtype(wide)? * 0.0)?.sum_all()?;
    Ok(!sum.to_dtype(DType::F64)?.to_scalar::<f64>()?.is_nan())
}

type Backward = dyn Fn(&Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync;

/// An op that returns a value computed before.
struct Node {
    name: &'static str,
    shape: Shape,
    value: Mutex<Option<Storage>>,
    backward: Box<Backward>,
}

impl Node {
    fn value(&self) -> Result<(Storage, Shape)> {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        match value.take() {
            Some(value) => Ok((value, self.shape.clone())),
            None => bail!("{}: the forward pass ran twice", self.name),
        }
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.value()? {
            (Storage::Cpu(value), shape) => Ok((value, shape)),
            _ => bail!("{}: arguments on different devices", self.name),
        }
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.value()? {
            (Storage::Cuda(value), shape) => Ok((value, shape)),
            _ => bail!("{}: arguments on different devices", self.name),
        }
    }

    fn metal(&self) -> Result<(MetalStorage, Shape)> {
        match self.value()? {
            (Storage::Metal(value), shape) => Ok((value, shape)),
            _ => bail!("{}: arguments on different devices", self.name),
        }
    }

    fn grads<const N: usize>(&self, grad: &Tensor, value: &Tensor) -> Result<[Option<Tensor>; N]> {
        match <[Option<Tensor>; N]>::try_from((self.backward)(grad, value)?) {
            Ok(grads) => Ok(grads),
            Err(grads) => bail!("{}: {} gradients for {N} arguments", self.name, grads.len()),
        }
    }
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(&self, _: &Tensor, value: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [x] = self.grads(grad, value)?;
        Ok(x)
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        value: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [x, y] = self.grads(grad, value)?;
        Ok((x, y))
    }
}

impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        value: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, y, z] = self.grads(grad, value)?;
        Ok((x, y, z))
    }
}

/// Moves the storage out of a tensor without a copy; the tensor must not be used again.
fn take_storage(value: &Tensor) -> Result<Storage> {
    let taken = Take(Mutex::new(None));
    value.inplace_op1(&taken)?;
    let storage = taken.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    match storage {
        Some(storage) => Ok(storage),
        None => bail!("the storage of a computed tensor could not be taken"),
    }
}

struct Take(Mutex<Option<Storage>>);

impl Take {
    fn take<S>(
        &self,
        storage: &mut S,
        layout: &Layout,
        wrap: impl FnOnce(S) -> Storage,
    ) -> Result<()>
    where
        S: BackendStorage,
        S::Device: BackendDevice<Storage = S>,
    {
        if !layout.is_contiguous() || layout.start_offset() != 0 {
            bail!("a computed tensor must be contiguous");
        }
        let nothing = storage
            .device()
            .zeros_impl(&Shape::from(1), storage.dtype())?;
        let storage = wrap(std::mem::replace(storage, nothing));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(storage);
        Ok(())
    }
}

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take-storage"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.take(storage, layout, Storage::Cpu)
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        self.take(storage, layout, Storage::Cuda)
    }

    fn metal_fwd(&self, storage: &mut MetalStorage, layout: &Layout) -> Result<()> {
        self.take(storage, layout, Storage::Metal)
    }
}
