//! Every layer by itself.

use candle_core::DType;
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Linear};
use lora_tests::fixed;

mod caches;
mod dropout;
mod gradients;
mod inputs;
mod life;
mod norms;
mod own;
mod own_linear;
mod reading;
mod rnn;
mod sequential;
mod start;
mod transposed;

pub const F32: DType = DType::F32;

pub fn linear(dtype: DType) -> Linear {
    Linear::new(fixed((4, 6), dtype, 1), Some(fixed(4, dtype, 2)))
}

pub fn conv1d(groups: usize, dilation: usize) -> Conv1d {
    let config = Conv1dConfig {
        padding: 2,
        stride: 2,
        dilation,
        groups,
        cudnn_fwd_algo: None,
    };
    Conv1d::new(
        fixed((6, 4 / groups, 3), F32, 1),
        Some(fixed(6, F32, 2)),
        config,
    )
}

pub fn conv2d(groups: usize, dilation: usize) -> Conv2d {
    let config = Conv2dConfig {
        padding: 1,
        stride: 2,
        dilation,
        groups,
        cudnn_fwd_algo: None,
    };
    Conv2d::new(
        fixed((8, 4 / groups, 3, 3), F32, 1),
        Some(fixed(8, F32, 2)),
        config,
    )
}
