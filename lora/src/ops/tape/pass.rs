//! The gradients of a backward pass, on their way from node to node.

use super::link::Link;
use crate::ops::add;
use candle_core::{Result, Shape, Tensor};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Where the gradient of one value gathers in a backward pass.
pub(super) struct Place {
    id: usize,
    pub(super) shape: Shape,
}

impl Place {
    pub(super) fn new(shape: &Shape) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        Self {
            id: COUNT.fetch_add(1, Ordering::Relaxed),
            shape: shape.clone(),
        }
    }
}

/// The gradients that one backward pass has gathered, by their slots.
///
/// The gradient of every token holds the pass, so the pass lives as long as anything in candle's
/// store waits for it. What a failed pass leaves behind goes with that store and meets no other
/// pass.
#[derive(Default)]
pub(super) struct BackwardPass(Mutex<HashMap<usize, Tensor>>);

thread_local! {
    /// The pass that this thread runs. A pass stays on the thread that started it. The reference is
    /// weak, so that a pass ends with candle's store, even after an error.
    static CURRENT: RefCell<Weak<BackwardPass>> = RefCell::default();
}

impl BackwardPass {
    /// The running pass, or a new one.
    pub(super) fn current() -> Arc<Self> {
        CURRENT.with_borrow_mut(|current| {
            current.upgrade().unwrap_or_else(|| {
                let pass = Arc::default();
                *current = Arc::downgrade(&pass);
                pass
            })
        })
    }

    /// Runs `f` without a current pass. `f` may run a pass of its own, as a checkpoint does, or
    /// wait for other threads and meanwhile take up work that runs one.
    pub(super) fn aside<R>(f: impl FnOnce() -> R) -> R {
        let current = CURRENT.take();
        let result = f();
        CURRENT.set(current);
        result
    }

    fn grads(&self) -> MutexGuard<'_, HashMap<usize, Tensor>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a gradient to a slot. The first gradient is stored without a copy.
    pub(super) fn deliver(&self, slot: &Place, grad: Tensor) -> Result<()> {
        let grad = grad.detach();
        let grad = match self.take(slot) {
            Some(sum) => add(&sum, &grad)?,
            None => grad,
        };
        self.grads().insert(slot.id, grad);
        Ok(())
    }

    pub(super) fn take(&self, slot: &Place) -> Option<Tensor> {
        self.grads().remove(&slot.id)
    }

    /// The gradient of a token: a zero whose graph holds the pass. Candle adds such zeros up and
    /// drops the sum after the token's own step.
    pub(super) fn hold(self: &Arc<Self>, token: &Tensor) -> Result<Tensor> {
        let held = self.clone();
        token.apply_op1(Link::token("pass", move |_, _| {
            let _ = &held;
            Ok(None)
        }))
    }
}
