use candle_nn::{Func, FuncT, GRU, LSTM, Linear, Module, Sequential};
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(rank)]
    fc: Linear,
    block: Func<'static>,
    dropped: Vec<FuncT<'static>>,
    layers: Sequential,
    head: Box<dyn Module>,
    heads: Vec<Box<dyn Module + Send + Sync>>,
    rnn: LSTM,
    more: Option<GRU>,
}

fn main() {}
