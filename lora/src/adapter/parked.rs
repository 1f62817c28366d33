//! [`Parked`]: the variables of tensors that are frozen at present.

use crate::Result;
use candle_core::{Tensor, Var};

/// The variables of tensors that are frozen at present, by place.
///
/// An optimiser knows a parameter by its variable. A tensor that is trained again becomes its
/// earlier variable, so that the optimiser keeps the parameter's state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parked(Vec<Option<Tensor>>);

impl Parked {
    /// Makes the tensor at this place a variable, or a frozen tensor. A tensor that is already as
    /// asked stays the very tensor.
    pub(crate) fn set_trainable(
        &mut self,
        place: usize,
        tensor: &mut Tensor,
        trainable: bool,
    ) -> Result<()> {
        if tensor.is_variable() == trainable {
            return Ok(());
        }
        if self.0.len() <= place {
            self.0.resize(place + 1, None);
        }
        let frozen = tensor.detach();
        if !trainable {
            self.0[place] = Some(std::mem::replace(tensor, frozen));
            return Ok(());
        }
        let fits = |var: &Tensor| {
            var.shape() == frozen.shape()
                && var.dtype() == frozen.dtype()
                && var.device().same_device(frozen.device())
        };
        *tensor = match self.0[place].take().filter(fits) {
            Some(var) => {
                // Other values may have been loaded meanwhile. They are copied, as a variable
                // cannot be set to a view of itself.
                Var::from_tensor(&var)?.set(&frozen.copy()?)?;
                var
            }
            None => Var::from_tensor(&frozen)?.into_inner(),
        };
        Ok(())
    }
}
