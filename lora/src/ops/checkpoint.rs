//! Activation checkpointing: the inner values of a part of a model are not kept. The backward pass
//! computes them anew.

use crate::ops::{dropout_state, permutation, record, record_all, seed_dropout};
use candle_core::{Result, Tensor, Var};
use std::collections::HashSet;

/// Runs a part of a model as one node of the graph that keeps only its input: the backward pass
/// runs the part again. Memory then holds the inner values of one part at a time, not of all. The
/// price is one more forward pass (<https://arxiv.org/abs/1604.06174>).
///
/// `f` must be a function of its argument and of variables, and compute the same each time. The
/// dropout of low-rank branches, of `Dropout` layers of a LoRA model and of
/// [`ops::dropout`](crate::ops::dropout) draws the same masks again; candle's own function does not.
/// Variables that `f` uses get their gradients. Other tracked tensors that `f` captured get none:
/// pass a tensor that needs a gradient as the argument. Without anything to train, `f` runs as it
/// is.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
///
/// let w = Var::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
/// let x = Var::new(&[[1f32, -1.]], &Device::Cpu)?;
/// let weight = w.as_tensor().clone();
/// let y = lora::checkpoint(&x, move |x| lora::ops::linear(x, &weight, None)?.sqr())?;
/// let grads = y.sum_all()?.backward()?;
/// assert!(grads.get(&w).is_some() && grads.get(&x).is_some());
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Those of `f`, in the backward pass too.
pub fn checkpoint(
    xs: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    // The second run must drop what the first dropped, or its gradient is that of another function.
    let state = dropout_state();
    let x = xs.detach();
    let y = f(&x)?;
    let vars: Vec<Var> = variables(&y)?;
    if vars.is_empty() && !xs.track_op() {
        return Ok(y);
    }
    let mut args = vec![xs];
    args.extend(vars.iter().map(Var::as_tensor));
    let tracked = xs.track_op();
    let value = y.detach();
    // The graph of `y` holds all inner values.
    drop(y);
    // The node's value must be contiguous; in memory order that keeps a permuted result permuted.
    let permutation = permutation(&value);
    let value = match &permutation {
        Some((order, _)) => value.permute(order.as_slice())?,
        None => value,
    };
    let back = permutation.map(|(_, inverse)| inverse);
    let (own_vars, own_back) = (vars.clone(), back.clone());
    let y = record_all(
        "checkpoint",
        &args,
        value.force_contiguous()?,
        move |grad| {
            let grad = match &own_back {
                Some(back) => grad.permute(back.as_slice())?,
                None => grad.clone(),
            };
            // Afterwards the masks go on as if this run had not been: other passes see no
            // difference.
            let now = dropout_state();
            seed_dropout(state);
            let grads = again(&f, &x, tracked, &own_vars, grad);
            seed_dropout(now);
            grads
        },
    )?;
    match back {
        Some(back) => y.permute(back),
        None => Ok(y),
    }
}

/// The gradients of the input and of the variables, by a backward pass of its own.
fn again(
    f: &impl Fn(&Tensor) -> Result<Tensor>,
    x: &Tensor,
    tracked: bool,
    vars: &[Var],
    grad: Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let input = tracked.then(|| Var::from_tensor(x)).transpose()?;
    let y = f(input.as_ref().map_or(x, Var::as_tensor))?;
    // Candle starts every backward pass from ones. A node on top of `y` hands `grad` in instead.
    let nothing = Tensor::zeros((), y.dtype(), y.device())?;
    let seed = record("checkpoint-again", [&y], nothing, move |_, _| {
        Ok([Some(grad.clone())])
    })?;
    let mut grads = seed.backward()?;
    let mut of = |var: &Var| grads.remove(var);
    let on_x = input.as_ref().and_then(&mut of);
    Ok(std::iter::once(on_x).chain(vars.iter().map(of)).collect())
}

/// The variables that a value depends on, each once.
fn variables(value: &Tensor) -> Result<Vec<Var>> {
    let mut seen = HashSet::new();
    let nodes = value.sorted_nodes().into_iter();
    let vars = nodes.filter(|node| node.is_variable() && seen.insert(node.id()));
    vars.map(Var::from_tensor).collect()
}
