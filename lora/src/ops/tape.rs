//! [`record`]: a node of candle's graph whose value was computed outside of it.
//!
//! Candle's own nodes keep their arguments' values alive, add every gradient to a fresh tensor of
//! zeros and take at most three arguments. The nodes here keep what their derivative captures and
//! nothing else. For that each node is two in candle's graph: a *token*, a single number that
//! carries the order of the backward pass, and the value that the model sees, which leads to the
//! token. From node to node candle only follows tokens; the gradients themselves go past it, in
//! [`GRADS`], without a copy. Where candle's own operations use a value or make an argument, one
//! step more hands the gradient over.
//!
//! A view of all of a value (reshaped, transposed, permuted) is recognised by its storage, so views
//! between nodes cost nothing in either pass, whatever the order of their dimensions.

use super::contiguous::copy;
use crate::profile;
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, InplaceOp1, Layout, MetalStorage, Result, Shape,
    Storage, Tensor, bail,
};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

/// Puts `value`, computed from `args` without a graph, into the graph with this derivative.
///
/// `backward` gets the gradient of the value, contiguous, and which arguments want theirs: those
/// that lead to a variable. An argument that does not is no part of the node, so nothing is computed
/// or kept for it. Without any tracked argument the value is returned as it is. What `backward`
/// captures is all that is kept; tensors in it must be detached.
///
/// `value` must own its storage: freshly computed, contiguous, not a view of anything.
pub(crate) fn record<const N: usize>(
    name: &'static str,
    args: [&Tensor; N],
    value: Tensor,
    backward: impl Fn(&Tensor, [bool; N]) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static,
) -> Result<Tensor> {
    let wanted = args.map(Tensor::track_op);
    record_all(name, &args, value, move |grad| {
        Ok(Vec::from(backward(grad, wanted)?))
    })
}

/// As [`record`], for any number of arguments; `backward` returns a gradient or none for each.
pub(crate) fn record_all(
    name: &'static str,
    args: &[&Tensor],
    value: Tensor,
    backward: impl Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let mut edges = Vec::with_capacity(args.len());
    let mut tokens = Vec::with_capacity(args.len());
    for arg in args {
        if !arg.track_op() {
            edges.push(None);
            continue;
        }
        let (edge, token) = Edge::to(arg)?;
        edges.push(Some(edge));
        tokens.push(token);
    }
    let before = match &tokens[..] {
        [] => return Ok(value),
        [token] => token.clone(),
        tokens => Tensor::cat(tokens, 0)?,
    };
    let slot = Arc::new(Slot::new(value.shape()));
    let node = slot.clone();
    let token = before.apply_op1(Link::token(name, move |before, _| {
        // No gradient: nothing that the loss depends on used the value.
        if let Some(grad) = node.take() {
            let span = profile::backward(name);
            let grads = backward(&copy(&grad)?)?;
            span.end(grads.iter().flatten());
            for (edge, grad) in edges.iter().zip(grads) {
                if let (Some(edge), Some(grad)) = (edge, grad) {
                    edge.deliver(grad)?;
                }
            }
        }
        Ok(Some(before.zeros_like()?))
    }))?;
    expose(slot, token, value)
}

/// As [`record`], for a derivative that is computed from the value: `backward` gets it as well.
pub(crate) fn record_with_value<const N: usize>(
    name: &'static str,
    args: [&Tensor; N],
    value: Tensor,
    backward: impl Fn(&Tensor, &Tensor, [bool; N]) -> Result<[Option<Tensor>; N]>
    + Send
    + Sync
    + 'static,
) -> Result<Tensor> {
    let kept = Arc::new(OnceLock::<Tensor>::new());
    let value_of = kept.clone();
    let node = record(name, args, value, move |grad, wanted| {
        match value_of.get() {
            Some(value) => backward(grad, value, wanted),
            None => bail!("{name}: the value is gone"),
        }
    })?;
    // Shares the storage of the value that the model sees, without its graph.
    let _ = kept.set(node.detach());
    Ok(node)
}

/// Where the gradient of one value gathers in a backward pass.
struct Slot {
    id: usize,
    shape: Shape,
}

thread_local! {
    /// The gradients of the backward pass that this thread runs, by their slots. A pass runs on the
    /// thread that started it, so passes on several threads do not meet.
    static GRADS: RefCell<HashMap<usize, Tensor>> = RefCell::default();
}

impl Slot {
    fn new(shape: &Shape) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        Self {
            id: COUNT.fetch_add(1, Ordering::Relaxed),
            shape: shape.clone(),
        }
    }

    /// Adds a gradient; the first is kept as it is.
    fn deliver(&self, grad: Tensor) -> Result<()> {
        let grad = grad.detach();
        let grad = match self.take() {
            Some(sum) => (sum + grad)?,
            None => grad,
        };
        GRADS.with_borrow_mut(|grads| grads.insert(self.id, grad));
        Ok(())
    }

    fn take(&self) -> Option<Tensor> {
        GRADS.with_borrow_mut(|grads| grads.remove(&self.id))
    }
}

impl Drop for Slot {
    /// A pass that failed may have left a gradient behind.
    fn drop(&mut self) {
        let _ = GRADS.try_with(|grads| grads.try_borrow_mut().map(|mut map| map.remove(&self.id)));
    }
}

/// The way of a gradient to an argument of a node.
struct Edge {
    slot: Arc<Slot>,
    /// The argument's dimensions in the order of memory, where the argument is a view.
    order: Option<Vec<usize>>,
}

impl Edge {
    /// The edge to an argument, and the token that stands for it.
    fn to(arg: &Tensor) -> Result<(Self, Tensor)> {
        if let Some((slot, token, order)) = produced(arg) {
            let order = Some(order);
            return Ok((Self { slot, order }, token));
        }
        // Made by candle, or a variable: the gradient goes back to candle.
        let slot = Arc::new(Slot::new(arg.shape()));
        let entry = slot.clone();
        let token = arg.apply_op1(Link::token("entry", move |arg, _| match entry.take() {
            Some(grad) => Ok(Some(grad)),
            // Candle expects a gradient for every argument, but for variables.
            None if arg.is_variable() => Ok(None),
            None => Ok(Some(arg.zeros_like()?)),
        }))?;
        Ok((Self { slot, order: None }, token))
    }

    fn deliver(&self, grad: Tensor) -> Result<()> {
        let grad = match &self.order {
            Some(order) => {
                let grad = copy(&grad.detach().permute(order.as_slice())?)?;
                grad.reshape(&self.slot.shape)?
            }
            None => grad,
        };
        self.slot.deliver(grad)
    }
}

/// A value that a node has produced and the model still holds.
struct Produced {
    slot: Arc<Slot>,
    token: Tensor,
}

/// The values that nodes have produced, by the address of their storage.
static PRODUCED: LazyLock<Mutex<HashMap<usize, Produced>>> = LazyLock::new(Mutex::default);

fn all_produced() -> MutexGuard<'static, HashMap<usize, Produced>> {
    PRODUCED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The slot and the token of a node's value, if the tensor is one or shows all of one; and its
/// dimensions in the order of memory.
fn produced(tensor: &Tensor) -> Option<(Arc<Slot>, Tensor, Vec<usize>)> {
    let order = memory_order(tensor.layout())?;
    let produced = all_produced();
    let Produced { slot, token } = produced.get(&address(tensor))?;
    (slot.shape.elem_count() == tensor.elem_count()).then(|| (slot.clone(), token.clone(), order))
}

fn address(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    std::ptr::from_ref::<Storage>(&storage).addr()
}

/// The dimensions from the slowest to the fastest, if the layout is that of a permuted contiguous
/// tensor at the start of its storage.
pub(crate) fn memory_order(layout: &Layout) -> Option<Vec<usize>> {
    let (dims, strides) = (layout.dims(), layout.stride());
    let mut order: Vec<usize> = (0..dims.len()).collect();
    // The strides of dimensions of one are without meaning.
    order.sort_by_key(|&dim| (dims[dim] != 1, std::cmp::Reverse(strides[dim])));
    let mut expected = 1;
    for &dim in order.iter().rev() {
        if dims[dim] != 1 && strides[dim] != expected {
            return None;
        }
        expected *= dims[dim];
    }
    (layout.start_offset() == 0).then_some(order)
}

/// The value as a tensor of candle's graph that leads to its token.
fn expose(slot: Arc<Slot>, token: Tensor, value: Tensor) -> Result<Tensor> {
    /// Takes the value off the list when the tensor goes.
    struct Listed(OnceLock<usize>);

    impl Drop for Listed {
        fn drop(&mut self) {
            if let Some(address) = self.0.get() {
                // Dropped after the lock is released: this may drop further values.
                let _gone = all_produced().remove(address);
            }
        }
    }

    let shape = value.shape().clone();
    // Candle refuses to change an empty tensor in place; any storage will do for one.
    let value = match value.elem_count() {
        0 => Tensor::zeros(1, value.dtype(), value.device())?,
        _ => value,
    };
    let listed = Arc::new(Listed(OnceLock::new()));
    let (exit, entry) = (slot.clone(), listed.clone());
    let value = token.apply_op1(Link {
        name: "exit",
        emit: Emit::Value(Mutex::new(Some(take_storage(&value)?)), shape),
        backward: Box::new(move |token, grad| {
            let _ = &entry;
            exit.deliver(grad.clone())?;
            Ok(Some(token.zeros_like()?))
        }),
    })?;
    let key = address(&value);
    let _ = listed.0.set(key);
    all_produced().insert(key, Produced { slot, token });
    Ok(value)
}

type Backward = dyn Fn(&Tensor, &Tensor) -> Result<Option<Tensor>> + Send + Sync;

/// A step of candle's graph: it emits what it was made with, and has this derivative, a function of
/// its argument and of the gradient of what it emits.
struct Link {
    name: &'static str,
    emit: Emit,
    backward: Box<Backward>,
}

enum Emit {
    /// One number, on the device of the argument.
    Token,
    /// A value computed before.
    Value(Mutex<Option<Storage>>, Shape),
}

impl Link {
    fn token(
        name: &'static str,
        backward: impl Fn(&Tensor, &Tensor) -> Result<Option<Tensor>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            emit: Emit::Token,
            backward: Box::new(backward),
        }
    }

    fn emit<S>(&self, arg: &S, unwrap: impl FnOnce(Storage) -> Option<S>) -> Result<(S, Shape)>
    where
        S: BackendStorage,
        S::Device: BackendDevice<Storage = S>,
    {
        match &self.emit {
            Emit::Token => {
                let shape = Shape::from(1);
                Ok((arg.device().zeros_impl(&shape, DType::F32)?, shape))
            }
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
        let result = (self.backward)(arg, grad);
        if result.is_err() {
            // The pass ends here: what it has gathered must not meet another.
            GRADS.with_borrow_mut(HashMap::clear);
        }
        result
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
