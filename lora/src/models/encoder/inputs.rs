//! A batch of texts, and what follows from it: positions and masks.

use super::config::{EncoderConfig, EncoderFamily};
use candle_core::{DType, Device, Result, Tensor, bail};

/// What an encoder reads: a batch of texts as numbers of tokens.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lora::models::encoder::Inputs;
///
/// // The second text is shorter.
/// let ids = Tensor::new(&[[2u32, 8, 5, 3], [2, 9, 3, 0]], &Device::Cpu)?;
/// let mask = Tensor::new(&[[1u8, 1, 1, 1], [1, 1, 1, 0]], &Device::Cpu)?;
/// let inputs = Inputs::new(&ids).mask(&mask);
/// # let _ = inputs;
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Inputs<'a> {
    pub(super) ids: &'a Tensor,
    pub(super) mask: Option<&'a Tensor>,
    pub(super) types: Option<&'a Tensor>,
}

impl<'a> Inputs<'a> {
    /// The tokens' numbers, (batch, time), integers below `vocab_size`.
    pub fn new(ids: &'a Tensor) -> Self {
        Self {
            ids,
            mask: None,
            types: None,
        }
    }

    /// Which tokens are padding, (batch, time) of any dtype: 1 for a token, 0 for padding, which no
    /// token sees. What the model computes at padding means nothing.
    pub fn mask(mut self, mask: &'a Tensor) -> Self {
        self.mask = Some(mask);
        self
    }

    /// The kinds of the tokens (`token_type_ids`), (batch, time), integers below
    /// `type_vocab_size`; without these all are 0. A family without kinds of tokens refuses.
    pub fn types(mut self, types: &'a Tensor) -> Self {
        self.types = Some(types);
        self
    }

    /// Batch and time.
    pub(super) fn shape(&self) -> Result<(usize, usize)> {
        let (batch, time) = match *self.ids.dims() {
            [batch, time] if self.ids.dtype().is_int() && batch * time > 0 => (batch, time),
            _ => bail!(
                "the ids must be integers of shape (batch, time), they are {:?} of shape {:?}",
                self.ids.dtype(),
                self.ids.dims()
            ),
        };
        for (what, tensor) in [
            ("padding mask is", self.mask),
            ("token types are", self.types),
        ] {
            if let Some(tensor) = tensor.filter(|tensor| tensor.dims() != [batch, time]) {
                bail!(
                    "the {what} {:?}, the ids are {:?}",
                    tensor.dims(),
                    [batch, time]
                );
            }
        }
        Ok((batch, time))
    }

    /// Which positions are tokens; `None` if all are.
    pub(super) fn tokens(&self) -> Result<Option<Vec<Vec<bool>>>> {
        let Some(mask) = self.mask else {
            return Ok(None);
        };
        let rows: Vec<Vec<f32>> = mask.to_dtype(DType::F32)?.to_vec2()?;
        let mut values = rows.iter().flatten();
        if let Some(value) = values.find(|&&value| value != 0.0 && value != 1.0) {
            bail!("the padding mask is 1 for a token and 0 for padding, it holds {value}");
        }
        let tokens = |row: &Vec<f32>| row.iter().map(|&value| value == 1.0).collect();
        let tokens: Vec<Vec<bool>> = rows.iter().map(tokens).collect();
        let is_padded = tokens.iter().flatten().any(|&is_token| !is_token);
        Ok(is_padded.then_some(tokens))
    }

    /// The rows of the table of positions: one for all texts, or one for each.
    pub(super) fn positions(&self, config: &EncoderConfig) -> Result<Tensor> {
        let (batch, time) = self.shape()?;
        let first = config.first_position() as u32;
        let positions = match (config.family, config.pad_token_id) {
            (EncoderFamily::Roberta, Some(pad)) => {
                let rows: Vec<Vec<u32>> = self.ids.to_dtype(DType::U32)?.to_vec2()?;
                let mut positions = Vec::with_capacity(batch * time);
                for row in rows {
                    let mut next = first;
                    // As in transformers the ids say what padding is, not the mask.
                    positions.extend(row.into_iter().map(|id| match id == pad {
                        true => pad,
                        false => {
                            next += 1;
                            next - 1
                        }
                    }));
                }
                positions
            }
            _ => (0..time as u32).collect(),
        };
        let most = config.max_position_embeddings;
        let last = positions.iter().copied().max().unwrap_or(0) as usize;
        if last >= most {
            bail!(
                "a text has {} tokens, the model has positions for {} \
                 (`max_position_embeddings`): cut longer texts",
                last + 1 - first as usize,
                most - first as usize
            );
        }
        let rows = positions.len() / time;
        Tensor::from_vec(positions, (rows, time), self.ids.device())
    }
}

/// What the attention adds to the scores, (batch, 1, 1, time): 0 for a token and −∞ for padding. As in
/// transformers, padding sees the tokens.
pub(super) fn mask(rows: &[Vec<bool>], device: &Device) -> Result<Tensor> {
    let value = |&is_token: &bool| if is_token { 0.0 } else { f32::NEG_INFINITY };
    let values: Vec<f32> = rows.iter().flatten().map(value).collect();
    let shape = (rows.len(), 1, 1, values.len() / rows.len());
    Tensor::from_vec(values, shape, device)
}
