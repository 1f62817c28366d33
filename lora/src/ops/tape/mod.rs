//! [`record`]: a node of candle's graph whose value was computed outside of it.
//!
//! Candle's own nodes keep their arguments' values alive, add every gradient to a fresh tensor of
//! zeros and take at most three arguments. The nodes here keep only what their derivative captures.
//!
//! For that, each node is two in candle's graph. One is a *token*, a single number that carries the
//! order of the backward pass. The other is the value that the model sees, which leads to the
//! token. From node to node candle follows tokens only. The gradients bypass candle in a
//! [`BackwardPass`], without a copy. Where candle's own operations use a value or make an argument,
//! one more step hands the gradient over.
//!
//! A view of a whole value (reshaped, transposed, permuted) is recognised by its storage. So views
//! between nodes cost nothing in either pass, whatever the order of their dimensions.

mod link;
mod pass;

use super::contiguous::copy;
use crate::profile;
use candle_core::{Layout, Result, Storage, Tensor, bail};
use link::{Join, Link, take_storage};
use pass::{BackwardPass, Place};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

/// Puts `value`, computed from `args` without a graph, into the graph with this derivative.
///
/// `backward` gets the gradient of the value, contiguous, and for each argument whether its
/// gradient is wanted: whether the argument leads to a variable. Other arguments are no part of the
/// node, and nothing is computed or kept for them. Without any tracked argument the value is
/// returned as it is. The node keeps only what `backward` captures. Tensors in there must be
/// detached: they would keep the graph below the node alive.
///
/// `value` must own its storage: freshly computed, contiguous, no view of another tensor.
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
    let Some(before) = join(tokens)? else {
        return Ok(value);
    };
    let slot = Arc::new(Place::new(value.shape()));
    let node = slot.clone();
    let token = before.apply_op1(Link::token(name, move |before, _| {
        let pass = BackwardPass::current();
        // Without a gradient, the loss does not depend on the value.
        if let Some(grad) = pass.take(&node) {
            BackwardPass::aside(|| {
                let span = profile::backward(name);
                let grads = backward(&copy(&grad)?)?;
                span.end(grads.iter().flatten());
                let grads = edges.iter().zip(grads);
                grads
                    .filter_map(|(edge, grad)| Some((edge.as_ref()?, grad?)))
                    .try_for_each(|(edge, grad)| edge.deliver(&pass, grad))
            })?;
        }
        // Candle wants a gradient for the tokens before in any case.
        Ok(Some(pass.hold(before)?))
    }))?;
    expose(slot, token, value)
}

/// As [`record`], for a derivative that is computed from the value: `backward` gets the value too.
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
    // The storage that the model sees. Detached, as the node would otherwise hold itself.
    let _ = kept.set(node.detach());
    Ok(node)
}

/// One token that leads to all of these.
fn join(tokens: Vec<Tensor>) -> Result<Option<Tensor>> {
    // The first argument ends the longest way. Joined last, it adds only one join to that way.
    let mut tokens = tokens.into_iter().rev();
    let Some(last) = tokens.next() else {
        return Ok(None);
    };
    tokens
        .try_fold(last, |all, token| token.apply_op2(&all, Join))
        .map(Some)
}

/// How a gradient reaches an argument of a node.
struct Edge {
    slot: Arc<Place>,
    /// The argument's dimensions in memory order, where the argument is a view.
    order: Option<Vec<usize>>,
}

impl Edge {
    /// The edge to an argument, and the token that stands for it.
    fn to(arg: &Tensor) -> Result<(Self, Tensor)> {
        if let Some((slot, token, order)) = produced(arg) {
            let order = Some(order);
            return Ok((Self { slot, order }, token));
        }
        // Candle made the argument, or it is a variable: the gradient goes back to candle.
        let slot = Arc::new(Place::new(arg.shape()));
        let entry = slot.clone();
        let token = arg.apply_op1(Link::token("entry", move |arg, _| {
            match BackwardPass::current().take(&entry) {
                Some(grad) => Ok(Some(grad)),
                // Candle expects a gradient for every argument except a variable.
                None if arg.is_variable() => Ok(None),
                None => Ok(Some(arg.zeros_like()?)),
            }
        }))?;
        Ok((Self { slot, order: None }, token))
    }

    fn deliver(&self, pass: &BackwardPass, grad: Tensor) -> Result<()> {
        let grad = match &self.order {
            Some(order) => {
                let grad = copy(&grad.detach().permute(order.as_slice())?)?;
                grad.reshape(&self.slot.shape)?
            }
            None => grad,
        };
        pass.deliver(&self.slot, grad)
    }
}

/// A value that a node has produced and the model still holds.
struct Produced {
    slot: Arc<Place>,
    token: Tensor,
    /// Keeps the storage while it is listed. Candle frees a tensor's storage before its graph, and
    /// another thread's tensor could take the address in between.
    _value: Tensor,
}

/// The values that nodes have produced, by the address of their storage.
static PRODUCED: LazyLock<Mutex<HashMap<usize, Produced>>> = LazyLock::new(Mutex::default);

/// How many values are on the list, for tests.
#[doc(hidden)]
pub fn recorded_values() -> usize {
    all_produced().len()
}

fn all_produced() -> MutexGuard<'static, HashMap<usize, Produced>> {
    PRODUCED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The slot and the token of a node's value, if the tensor is that value or a view of all of it,
/// and the tensor's dimensions in memory order.
fn produced(tensor: &Tensor) -> Option<(Arc<Place>, Tensor, Vec<usize>)> {
    let order = memory_order(tensor.layout())?;
    let produced = all_produced();
    let Produced { slot, token, .. } = produced.get(&address(tensor))?;
    (slot.shape.elem_count() == tensor.elem_count()).then(|| (slot.clone(), token.clone(), order))
}

fn address(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    std::ptr::from_ref::<Storage>(&storage).addr()
}

/// The dimensions from the slowest to the fastest, if the tensor is a permuted contiguous one at
/// the start of its storage.
pub(crate) fn memory_order(layout: &Layout) -> Option<Vec<usize>> {
    let (dims, strides) = (layout.dims(), layout.stride());
    let mut order: Vec<usize> = (0..dims.len()).collect();
    // The stride of a dimension of size one means nothing: sort such dimensions to the front.
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

/// Lists the value, and returns it as a tensor of candle's graph that leads to its token.
fn expose(slot: Arc<Place>, token: Tensor, value: Tensor) -> Result<Tensor> {
    /// Takes the value off the list when the tensor goes.
    struct Listed(OnceLock<usize>);

    impl Drop for Listed {
        fn drop(&mut self) {
            if let Some(address) = self.0.get() {
                // Dropped after the lock is released, as the entry may own further listed values.
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
    let value = token.apply_op1(Link::value(
        take_storage(&value)?,
        shape,
        move |token, grad| {
            // Captured, so that the entry lives exactly as long as this node.
            let _ = &entry;
            let pass = BackwardPass::current();
            pass.deliver(&exit, grad.clone())?;
            Ok(Some(pass.hold(token)?))
        },
    ))?;
    let key = address(&value);
    let _ = listed.0.set(key);
    let produced = Produced {
        slot,
        token,
        _value: value.detach(),
    };
    all_produced().insert(key, produced);
    Ok(value)
}
