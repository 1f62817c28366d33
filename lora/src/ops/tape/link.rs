//! The nodes of candle's graph that the tape is made of.

use super::pass::BackwardPass;
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, InplaceOp1, Layout, MetalStorage, Result,
    Shape, Storage, Tensor, bail,
};
use std::sync::{Mutex, PoisonError};

type Backward = dyn Fn(&Tensor, &Tensor) -> Result<Option<Tensor>> + Send + Sync;

/// A step of candle's graph. It emits a token, or a value that was computed before. Its derivative
/// gets the step's argument and the gradient of what the step emitted.
pub(super) struct Link {
    name: &'static str,
    emit: Emit,
    backward: Box<Backward>,
}

enum Emit {
    Token,
    /// A value computed before. Candle runs a step once, so its storage is moved out, not copied.
    Value(Mutex<Option<Storage>>, Shape),
}

impl Link {
    pub(super) fn token(
        name: &'static str,
        backward: impl Fn(&Tensor, &Tensor) -> Result<Option<Tensor>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            emit: Emit::Token,
            backward: Box::new(backward),
        }
    }

    /// The step from a token to the value that the token stands for.
    pub(super) fn value(
        value: Storage,
        shape: Shape,
        backward: impl Fn(&Tensor, &Tensor) -> Result<Option<Tensor>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: "exit",
            emit: Emit::Value(Mutex::new(Some(value)), shape),
            backward: Box::new(backward),
        }
    }

    fn emit<S>(&self, arg: &S, unwrap: impl FnOnce(Storage) -> Option<S>) -> Result<(S, Shape)>
    where
        S: BackendStorage,
        S::Device: BackendDevice<Storage = S>,
    {
        match &self.emit {
            Emit::Token => number(arg),
            Emit::Value(value, shape) => {
                let value = value.lock().unwrap_or_else(PoisonError::into_inner).take();
                match value.and_then(unwrap) {
                    Some(value) => Ok((value, shape.clone())),
                    None => bail!("{}: no value on this device", self.name),
                }
            }
        }
    }
}

/// A token: one number, on the device of the argument.
fn number<S>(arg: &S) -> Result<(S, Shape)>
where
    S: BackendStorage,
    S::Device: BackendDevice<Storage = S>,
{
    let shape = Shape::from(1);
    Ok((arg.device().zeros_impl(&shape, DType::F32)?, shape))
}

impl CustomOp1 for Link {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, arg: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.emit(arg, |storage| match storage {
            Storage::Cpu(value) => Some(value),
            _ => None,
        })
    }

    fn cuda_fwd(&self, arg: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.emit(arg, |storage| match storage {
            Storage::Cuda(value) => Some(value),
            _ => None,
        })
    }

    fn metal_fwd(&self, arg: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.emit(arg, |storage| match storage {
            Storage::Metal(value) => Some(value),
            _ => None,
        })
    }

    fn bwd(&self, arg: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(arg, grad)
    }
}

/// Joins two tokens to one. Candle's own operations would lose the graph of a gradient, which holds
/// the pass.
pub(super) struct Join;

impl CustomOp2 for Join {
    fn name(&self) -> &'static str {
        "join"
    }

    fn cpu_fwd(
        &self,
        arg: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        number(arg)
    }

    fn cuda_fwd(
        &self,
        arg: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        number(arg)
    }

    fn metal_fwd(
        &self,
        arg: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        number(arg)
    }

    fn bwd(
        &self,
        left: &Tensor,
        right: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let pass = BackwardPass::current();
        Ok((Some(pass.hold(left)?), Some(pass.hold(right)?)))
    }
}

/// Moves the storage out of a tensor without a copy; the tensor must not be used again.
pub(super) fn take_storage(value: &Tensor) -> Result<Storage> {
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
