//! Containers of models.
#![deny(warnings, missing_docs, clippy::all)]
#![allow(dead_code)]

use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, BatchNorm, Conv1d, Conv2d, Dropout, Embedding, Linear};
use lora::LoraModel;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Each of them.
#[derive(LoraModel)]
pub struct All {
    #[lora(rank)]
    vec: Vec<Linear>,
    #[lora(rank)]
    array: [Conv1d; 3],
    #[lora(rank)]
    option: Option<Conv2d>,
    #[lora(rank)]
    boxed: Box<Embedding>,
    #[lora(rank)]
    shared: Arc<Linear>,
    #[lora(rank)]
    map: HashMap<String, Linear>,
    #[lora(trainable)]
    sorted: BTreeMap<usize, Vec<BatchNorm>>,
    #[lora(rank)]
    pair: (Linear, Embedding),
    nested: Vec<Option<[Box<Linear>; 2]>>,
    dropout: Dropout,
    act: Activation,
    table: Tensor,
    cache: Option<(Tensor, Tensor)>,
    device: Device,
    dtype: DType,
    size: usize,
    scale: f64,
    label: &'static str,
}

pub fn main() {
    fn convertible<M: LoraModel>() {}
    convertible::<All>();
}
