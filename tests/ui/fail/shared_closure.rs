use candle_core::{Result, Tensor};
use candle_nn::Linear;
use lora::LoraModel;
use std::cell::RefCell;
use std::sync::{Arc, Mutex};

#[derive(LoraModel)]
struct Net {
    #[lora(rank)]
    fc: Linear,
    act: Arc<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>,
    cache: Arc<Mutex<Option<Tensor>>>,
    calls: RefCell<usize>,
}

fn main() {}
