//! [`Places`]: the paths of tensors that are fields. Such a tensor has no room for the path that a
//! checkpoint gives it, so the path is found by the tensor's identity.

use candle_core::{Tensor, TensorId};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock, Weak};

/// The placed tensors of the process.
static PLACED: LazyLock<RwLock<HashMap<TensorId, Placed>>> = LazyLock::new(Default::default);

#[derive(Clone, Debug)]
struct Placed {
    path: Arc<str>,
    owner: Weak<Places>,
}

/// The tensors of one model whose paths are known. The layers of the model hold this value, and so do
/// the layers of its clones: the paths live as long as one of those.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Vec<TensorId>>);

impl Drop for Places {
    fn drop(&mut self) {
        let ids = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut placed = PLACED.write().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            placed.remove(id);
        }
    }
}

impl Places {
    /// Gives a tensor a path. No other model may hold the tensor.
    pub(crate) fn put(self: &Arc<Self>, tensor: &Tensor, path: Arc<str>) {
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ids.push(tensor.id());
        let owner = Arc::downgrade(self);
        let mut placed = PLACED.write().unwrap_or_else(PoisonError::into_inner);
        placed.insert(tensor.id(), Placed { path, owner });
    }
}

/// The path of a tensor, if it was given one.
pub(crate) fn place_of(tensor: &Tensor) -> Option<Arc<str>> {
    let placed = PLACED.read().unwrap_or_else(PoisonError::into_inner);
    placed.get(&tensor.id()).map(|placed| placed.path.clone())
}

/// Gives a tensor the path of the tensor in whose place it is now.
pub(crate) fn replaced(before: TensorId, tensor: &Tensor) {
    let placed = PLACED.read().unwrap_or_else(PoisonError::into_inner);
    let found = placed.get(&before).cloned();
    drop(placed);
    if let Some(Placed { path, owner }) = found
        && let Some(owner) = owner.upgrade()
    {
        owner.put(tensor, path);
    }
}
