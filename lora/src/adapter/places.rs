//! Names that go with tensors. A tensor has no room for one, so it is found by the tensor's identity.

use candle_core::{Tensor, TensorId};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock, Weak};

/// The names of tensors in checkpoints, as [`Names`](crate::Names) recorded them.
pub(crate) static RECORDED: Registry = Registry::new();

/// The paths of a LoRA model's tensors that are fields. Other layers hold their paths themselves.
pub(crate) static PLACED: Registry = Registry::new();

/// Names by tensor. An id is never used twice, so a name is found for the very tensor that has it.
pub(crate) struct Registry(LazyLock<RwLock<HashMap<TensorId, Named>>>);

#[derive(Clone)]
struct Named {
    name: Arc<str>,
    owner: Weak<Owner>,
}

/// What a registry knows on someone's behalf: names last as long as their owner.
pub(crate) struct Owner {
    registry: &'static Registry,
    ids: Mutex<Vec<TensorId>>,
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} names", self.len())
    }
}

impl Registry {
    const fn new() -> Self {
        Self(LazyLock::new(RwLock::default))
    }

    pub(crate) fn owner(&'static self) -> Arc<Owner> {
        let (registry, ids) = (self, Mutex::default());
        Arc::new(Owner { registry, ids })
    }

    fn find(&self, id: TensorId) -> Option<Named> {
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        names.get(&id).cloned()
    }

    /// The name of a tensor, if it has one.
    pub(crate) fn name_of(&self, tensor: &Tensor) -> Option<Arc<str>> {
        self.find(tensor.id()).map(|named| named.name)
    }

    /// Gives a tensor the name of the one that it replaces.
    pub(crate) fn replace(&self, before: TensorId, tensor: &Tensor) {
        if before != tensor.id()
            && let Some(Named { name, owner }) = self.find(before)
            && let Some(owner) = owner.upgrade()
        {
            owner.put(tensor, name);
        }
    }
}

impl Owner {
    pub(crate) fn put(self: &Arc<Self>, tensor: &Tensor, name: Arc<str>) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.push(tensor.id());
        let owner = Arc::downgrade(self);
        let names = self.registry.0.write();
        let mut names = names.unwrap_or_else(PoisonError::into_inner);
        names.insert(tensor.id(), Named { name, owner });
    }

    pub(crate) fn len(&self) -> usize {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.len()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let ids = self.ids.get_mut().unwrap_or_else(PoisonError::into_inner);
        let names = self.registry.0.write();
        let mut names = names.unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            names.remove(id);
        }
    }
}
