//! Gradients of the other ops against finite differences in f64.

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Activation, Conv2d, Conv2dConfig, Embedding, Module};
use lora::{LoraModel, ops};
use lora_tests::{check_gradients, fixed, var};

const F64: DType = DType::F64;

/// Channels in and out, kernel, configuration, the input's height and width.
pub type ConvCase = (usize, usize, usize, Conv2dConfig, (usize, usize));

pub fn conv2d_configs() -> Vec<ConvCase> {
    let config = |padding, stride, dilation, groups| Conv2dConfig {
        padding,
        stride,
        dilation,
        groups,
        cudnn_fwd_algo: None,
    };
    vec![
        (3, 4, 3, config(0, 1, 1, 1), (5, 4)),
        (2, 4, 3, config(1, 2, 1, 1), (7, 6)),
        (2, 2, 2, config(0, 2, 1, 1), (7, 5)),
        (2, 3, 2, config(2, 3, 2, 1), (6, 9)),
        (4, 6, 3, config(1, 1, 1, 2), (4, 5)),
        (4, 4, 3, config(2, 2, 2, 2), (7, 8)),
        (4, 4, 3, config(1, 1, 1, 4), (5, 3)),
        (4, 4, 5, config(3, 2, 2, 4), (9, 6)),
        (3, 5, 1, config(0, 1, 1, 1), (4, 3)),
        (2, 2, 1, config(2, 5, 1, 1), (1, 3)),
        (2, 2, 1, config(2, 5, 1, 2), (1, 3)),
    ]
}

#[test]
fn conv2d_op() {
    for (channels, out, kernel, config, (h, w)) in conv2d_configs() {
        let x = var((2, channels, h, w), 1);
        let weight = var((out, channels / config.groups, kernel, kernel), 2);
        let bias = var(out, 3);
        let vars = [("x", &x), ("weight", &weight), ("bias", &bias)];
        check_gradients(&format!("{config:?}"), &vars, || {
            ops::conv2d(&x, &weight, Some(&bias), &config)
        });
    }
}

#[test]
fn conv2d_op_agrees_with_candle() {
    for (channels, out, kernel, config, (h, w)) in conv2d_configs() {
        let x = fixed((2, channels, h, w), F64, 1);
        let weight = fixed((out, channels / config.groups, kernel, kernel), F64, 2);
        let ours = ops::conv2d(&x, &weight, None, &config).unwrap();
        let candle = Conv2d::new(weight, None, config).forward(&x).unwrap();
        lora_tests::assert_close(&format!("{config:?}"), &ours, &candle, 1e-12);
    }
}

#[test]
fn linear_op() {
    let (weight, bias) = (var((3, 5), 2), var(3, 3));
    for shape in [vec![5], vec![2, 5], vec![2, 3, 5], vec![2, 1, 3, 5]] {
        let x = var(shape.clone(), 1);
        let vars = [("x", &x), ("weight", &weight), ("bias", &bias)];
        check_gradients(&format!("{shape:?}"), &vars, || {
            ops::linear(&x, &weight, Some(&bias))
        });
        check_gradients(&format!("{shape:?} frozen"), &[("x", &x)], || {
            ops::linear(&x, &weight.as_detached_tensor(), None)
        });
    }
}

#[test]
fn a_frozen_argument_gets_no_gradient() {
    let (x, weight) = (var((2, 5), 1), fixed((3, 5), F64, 2));
    let y = ops::linear(&x, &weight, None).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some() && grads.get(&weight).is_none());
    let frozen = ops::linear(&x.as_detached_tensor(), &weight, None).unwrap();
    assert!(!frozen.track_op());
}

#[test]
fn embedding_op() {
    let table = var((5, 3), 1);
    let ids = Tensor::new(&[[1u32, 4, 1], [0, 0, 2]], table.device()).unwrap();
    check_gradients("embedding", &[("table", &table)], || {
        ops::embedding(&ids, &table)
    });
}

#[test]
fn embedding_op_of_a_transposed_table() {
    let a = var((3, 5), 1);
    for ids in [DType::U8, DType::U32, DType::I64] {
        let ids = Tensor::new(&[[1u32, 4, 1], [0, 0, 2]], a.device())
            .unwrap()
            .to_dtype(ids)
            .unwrap();
        let rows = ops::embedding(&ids, &a.t().unwrap()).unwrap();
        let table = a.t().unwrap().contiguous().unwrap();
        let expected = Embedding::new(table, 3).forward(&ids).unwrap();
        lora_tests::assert_close("rows", &rows, &expected, 0.0);
        check_gradients("embedding", &[("a", &a)], || ops::embedding(&ids, &a.t()?));
    }
    let outside = Tensor::new(&[1u32, 5], a.device()).unwrap();
    assert!(ops::embedding(&outside, &a.t().unwrap()).is_err());
}

#[test]
fn contiguous_op() {
    let x = var((2, 3, 5, 9), 1);
    for order in [[0, 2, 3, 1], [0, 3, 1, 2], [3, 1, 0, 2], [0, 1, 2, 3]] {
        check_gradients(&format!("{order:?}"), &[("x", &x)], || {
            let y = ops::contiguous(&x.permute(order)?)?;
            assert!(y.is_contiguous());
            Ok(y)
        });
        // A node's value, back in its own order.
        check_gradients(&format!("taped {order:?}"), &[("x", &x)], || {
            let y = ops::contiguous(&ops::silu(&x)?.permute(order)?)?;
            ops::silu(&y)
        });
    }
    let part = || x.narrow(3, 2, 5)?.transpose(1, 3);
    check_gradients("a part", &[("x", &x)], || ops::contiguous(&part()?));
    for dtype in [DType::BF16, DType::F16, DType::F32, DType::U32] {
        let x = (fixed((2, 7, 11), F64, 1) * 99.0).unwrap().abs().unwrap();
        let x = x.to_dtype(dtype).unwrap().transpose(1, 2).unwrap();
        let (ours, candle) = (ops::contiguous(&x).unwrap(), x.contiguous().unwrap());
        lora_tests::assert_close(&format!("{dtype:?}"), &ours, &candle, 0.0);
    }
}

#[test]
fn softmax_ops() {
    let x = var((2, 3, 5), 1);
    check_gradients("last", &[("x", &x)], || ops::softmax_last_dim(&x));
    check_gradients("any", &[("x", &x)], || ops::softmax(&x, 1));
    check_gradients("permuted", &[("x", &x)], || {
        ops::softmax_last_dim(&x.transpose(0, 1)?)
    });
}

#[test]
fn softmax_agrees_with_candle() {
    for shape in [
        vec![1],
        vec![3, 1],
        vec![2, 7],
        vec![5, 16, 17],
        vec![2, 3, 4, 65],
    ] {
        for (dtype, tolerance) in [(F64, 1e-14), (DType::F32, 5e-7), (DType::BF16, 1e-2)] {
            let x = (fixed(shape.clone(), dtype, 1) * 20.0).unwrap();
            for dim in 0..shape.len() {
                let wide = x.to_dtype(F64).unwrap();
                let (ours, candle) = (ops::softmax(&x, dim), candle_nn::ops::softmax(&wide, dim));
                let what = format!("{shape:?} {dtype:?} {dim}");
                lora_tests::assert_close(&what, &ours.unwrap(), &candle.unwrap(), tolerance);
            }
        }
    }
    let empty = Tensor::zeros((2, 0), F64, &candle_core::Device::Cpu).unwrap();
    assert_eq!(ops::softmax_last_dim(&empty).unwrap().dims(), [2, 0]);
    let scalar = Tensor::new(1f32, &candle_core::Device::Cpu).unwrap();
    assert!(ops::softmax_last_dim(&scalar).is_err());
}

#[test]
fn rope_ops() {
    let x = var((2, 3, 4, 6), 1);
    let (cos, sin) = (
        fixed((4, 3), F64, 2).cos().unwrap(),
        fixed((4, 3), F64, 2).sin().unwrap(),
    );
    check_gradients("rope", &[("x", &x)], || ops::rope(&x, &cos, &sin));
    check_gradients("rope_i", &[("x", &x)], || ops::rope_i(&x, &cos, &sin));
    let x = var((2, 4, 3, 6), 1);
    check_gradients("rope_thd", &[("x", &x)], || ops::rope_thd(&x, &cos, &sin));
}

/// Tables with a batch dimension and longer than the input; inputs that are views.
#[test]
fn rope_agrees_with_its_definition() {
    type Op = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;
    let cases: [(&str, Op, usize, bool); 3] = [
        ("rope", ops::rope, 2, false),
        ("rope_i", ops::rope_i, 2, true),
        ("rope_thd", ops::rope_thd, 1, false),
    ];
    for (name, op, time, neighbours) in cases {
        for (table, transposed) in [
            (vec![7, 3], false),
            (vec![7, 3], true),
            (vec![2, 7, 3], true),
        ] {
            let x = var((2, 3, 4, 6), 1);
            let angles = (fixed(table.clone(), F64, 2) * 3.0).unwrap();
            let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
            let view = || {
                if transposed {
                    x.transpose(1, 2)
                } else {
                    Ok(x.as_tensor().clone())
                }
            };
            let y = op(&view().unwrap(), &cos, &sin).unwrap();
            let what = format!("{name} {table:?} {transposed}");
            check_gradients(&what, &[("x", &x)], || op(&view()?, &cos, &sin));

            let (x, dims) = (lora_tests::values(&view().unwrap()).unwrap(), y.dims());
            let y = lora_tests::values(&y).unwrap();
            let angles = lora_tests::values(&angles).unwrap();
            for row in 0..x.len() / 6 {
                let index = [
                    row / (dims[1] * dims[2]),
                    row / dims[2] % dims[1],
                    row % dims[2],
                ];
                let batch = if table.len() == 3 { index[0] } else { 0 };
                for i in 0..3 {
                    let (sin, cos) = angles[(batch * 7 + index[time]) * 3 + i].sin_cos();
                    let (first, second) = if neighbours {
                        (2 * i, 2 * i + 1)
                    } else {
                        (i, i + 3)
                    };
                    let (first, second) = (row * 6 + first, row * 6 + second);
                    assert!(
                        (y[first] - (x[first] * cos - x[second] * sin)).abs() < 1e-12,
                        "{what}"
                    );
                    assert!(
                        (y[second] - (x[first] * sin + x[second] * cos)).abs() < 1e-12,
                        "{what}"
                    );
                }
            }
        }
        let x = fixed((2, 3, 4, 6), F64, 1);
        for shape in [vec![2, 3], vec![4, 2], vec![3, 4, 3], vec![4]] {
            let table = fixed(shape.clone(), F64, 2);
            let message = op(&x, &table, &table).unwrap_err().to_string();
            assert!(message.contains(&format!("{shape:?}")), "{message}");
        }
        let empty = fixed((0, 3, 4, 6), F64, 1);
        let table = fixed((4, 3), F64, 1);
        assert_eq!(op(&empty, &table, &table).unwrap().dims(), empty.dims());
    }
}

#[test]
fn activations() {
    use Activation::*;
    let all = [
        Gelu,
        NewGelu,
        Relu,
        Relu2,
        Relu6,
        Silu,
        Sigmoid,
        HardSigmoid,
        Swiglu,
        Swish,
        Mish,
        HardSwish,
        Elu(0.7),
        LeakyRelu(0.1),
        GeluPytorchTanh,
    ];
    let x = Var::from_tensor(&(fixed((3, 8), F64, 1) * 4.0).unwrap()).unwrap();
    for activation in all {
        let lora = activation.to_frozen().unwrap();
        check_gradients(&format!("{activation:?}"), &[("x", &x)], || {
            lora.forward(&x)
        });
        let (ours, candle) = (lora.forward(&x).unwrap(), activation.forward(&x).unwrap());
        lora_tests::assert_close(&format!("{activation:?}"), &ours, &candle, 1e-12);
    }
}
