//! The trained parameters, with the properties by which the optimisers group them.

use crate::config::matching::is_bias;
use crate::path::join;
use crate::traits::each_layer;
use crate::{Kind, LoraModule, Part, Role};
use candle_core::Var;
use std::collections::HashSet;

/// A trained parameter.
pub(super) struct Trained {
    pub path: String,
    /// The kind of the layer that holds it.
    kind: Kind,
    role: Role,
    pub var: Var,
}

impl Trained {
    /// True if its layer is a normalisation.
    pub fn in_norm(&self) -> bool {
        self.kind.is_norm()
    }

    /// True if it has at most one dimension, as biases, norms and magnitudes have.
    pub fn is_vector(&self) -> bool {
        self.var.dims().len() <= 1
    }

    /// True for a bias: a layer's own, or that of an adapter's B.
    pub fn is_bias(&self) -> bool {
        match self.role {
            Role::Adapter(part) => part == Part::Bias,
            _ => is_bias(&self.path),
        }
    }

    /// True for an adapter's matrix B.
    pub fn is_b(&self) -> bool {
        self.role == Role::Adapter(Part::B)
    }

    /// True for an adapter's matrices A and B beside an embedding.
    pub fn is_of_embedding(&self) -> bool {
        self.kind == Kind::Embedding && matches!(self.role, Role::Adapter(Part::A | Part::B))
    }
}

/// The trained parameters in the order of the walk. A tied parameter comes once, where it is first.
pub(super) fn trained<M: LoraModule>(model: &M) -> Vec<Trained> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    each_layer(model, |path, layer| {
        for param in layer.params() {
            if !param.tensor.is_variable() || !seen.insert(param.tensor.id()) {
                continue;
            }
            // A variable is returned as it is; only others are copied, which can fail.
            if let Ok(var) = Var::from_tensor(param.tensor) {
                found.push(Trained {
                    path: join(path, &param.name),
                    kind: layer.kind(),
                    role: param.role,
                    var,
                });
            }
        }
    });
    found
}
