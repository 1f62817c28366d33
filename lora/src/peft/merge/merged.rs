//! A checkpoint with an adapter merged into it, as a checkpoint: what the next adapter is merged into.
//! Nothing is written, and each tensor is merged when it is asked for.

use super::plan::{Plan, parts};
use super::settings;
use super::write::{bytes, updated};
use crate::file::{Checkpoint, Shard};
use crate::{Error, Result};
use candle_core::Tensor;
use indexmap::IndexMap;
use safetensors::tensor::TensorInfo;
use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// The base of a plan with the plan's adapter in it. Dtypes are those of the base; the values are in the
/// dtype of the computation, so that they are rounded once, when the last adapter is in.
pub(super) fn merged(plan: Plan) -> Result<Checkpoint> {
    let plan = Arc::new(plan);
    let base = &plan.base;
    let shards = base.shards.iter().enumerate().map(|(place, _)| {
        Box::new(MergedShard {
            tensors: plan.layout(place),
            plan: plan.clone(),
            place,
        }) as Box<dyn Shard>
    });
    let index = base.index.as_ref();
    let index = index.map(|(name, index)| (name.clone(), updated(index, &plan)));
    let merged = Checkpoint::of(&base.path, base.dir.as_deref(), index, shards.collect())?;
    Ok(match base.model_config()? {
        Some(mut config) => {
            settings::put(&mut config, &plan.settings);
            merged.with_config(config)
        }
        None => merged,
    })
}

struct MergedShard {
    plan: Arc<Plan>,
    /// The base's shard.
    place: usize,
    tensors: IndexMap<String, TensorInfo>,
}

impl fmt::Debug for MergedShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = &self.plan.base.shards[self.place];
        f.debug_struct("MergedShard")
            .field("base", base)
            .finish_non_exhaustive()
    }
}

impl MergedShard {
    fn base(&self) -> &dyn Shard {
        &*self.plan.base.shards[self.place]
    }
}

impl Shard for MergedShard {
    fn path(&self) -> &Path {
        self.base().path()
    }

    fn name(&self) -> Option<&str> {
        self.base().name()
    }

    fn tensors(&self) -> &IndexMap<String, TensorInfo> {
        &self.tensors
    }

    fn metadata(&self) -> Option<&HashMap<String, String>> {
        self.base().metadata()
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.plan.apply_wide(name)
    }

    fn copy(&self, name: &str, to: &mut dyn Write) -> Result<()> {
        if !self.plan.touches(name) {
            return self.base().copy(name, to);
        }
        for part in parts(&self.plan.apply(name)?)? {
            let written = to.write_all(&bytes(&part?)?);
            written.map_err(|error| Error::file(self.path(), error))?;
        }
        Ok(())
    }
}
