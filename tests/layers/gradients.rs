//! Gradients of every op, every LoRA layer and every frozen layer's input, against finite
//! differences in f64.

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{
    Activation, BatchNorm, Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Embedding, GroupNorm,
    LayerNorm, Linear, Module, ModuleT, RmsNorm,
};
use lora::{LoraConfig, LoraModel, LoraModule, TrainBias, ops};
use lora_tests::{check_gradients, fill_adapters, fixed, var};

const F64: DType = DType::F64;

/// Checks the gradients of the model's trainable parameters, and of the input `x`.
#[track_caller]
fn check_model<M: LoraModule>(
    what: &str,
    model: &M,
    x: &Var,
    f: impl Fn(&Tensor) -> Result<Tensor>,
) {
    fill_adapters(model);
    let params = model.named_params();
    let trainable: Vec<_> = params.iter().filter(|p| p.is_trainable()).collect();
    let vars: Vec<Var> = model.trainable_vars();
    let mut named: Vec<(&str, &Var)> = trainable
        .iter()
        .map(|p| p.path.as_str())
        .zip(&vars)
        .collect();
    if x.dtype().is_float() {
        named.push(("input", x));
    }
    check_gradients(what, &named, || f(x));
}

/// Channels in and out, kernel, configuration, the input's height and width.
type ConvCase = (usize, usize, usize, Conv2dConfig, (usize, usize));

fn conv2d_configs() -> Vec<ConvCase> {
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
fn norm_ops() {
    let (x, weight, bias) = (var((2, 3, 7), 1), var(7, 2), var(7, 3));
    let vars = [("x", &x), ("weight", &weight), ("bias", &bias)];
    check_gradients("layer_norm", &vars, || {
        ops::layer_norm(&x, &weight, &bias, 1e-5)
    });
    check_gradients("rms_norm", &vars[..2], || ops::rms_norm(&x, &weight, 1e-5));
}

#[test]
fn affine_op() {
    let (x, weight, bias) = (var((2, 3, 4), 1), var(3, 2), var(3, 3));
    let vars = [("x", &x), ("weight", &weight), ("bias", &bias)];
    check_gradients("affine", &vars, || ops::affine(&x, &weight, Some(&bias), 1));
    assert!(ops::affine(&x, &weight, None, 2).is_err());
    assert!(ops::affine(&x, &weight, None, 3).is_err());
}

#[test]
fn norms_of_any_width_and_order() {
    for width in [1, 3, 7, 13, 17] {
        let (weight, bias) = (var(width, 2), var(width, 3));
        // Tokens, a map with its channels moved last, and heads beside each other.
        let (tokens, map) = (var((3, width), 1), var((2, width, 2, 3), 1));
        let heads = var((2, 3, 2, width), 1);
        for (x, order) in [
            (&tokens, vec![0, 1]),
            (&map, vec![0, 2, 3, 1]),
            (&heads, vec![0, 2, 1, 3]),
        ] {
            let vars = [("x", x), ("weight", &weight), ("bias", &bias)];
            let input = || x.permute(order.as_slice());
            // One number less its mean is 0, whatever it is.
            if width > 1 {
                check_gradients(&format!("layer_norm {width} {order:?}"), &vars, || {
                    ops::layer_norm(&input()?, &weight, &bias, 1e-5)
                });
            }
            check_gradients(&format!("rms_norm {width} {order:?}"), &vars[..2], || {
                ops::rms_norm(&input()?, &weight, 1e-2)
            });
            // Between nodes of the tape.
            check_gradients(&format!("between {width} {order:?}"), &vars[..2], || {
                let x = ops::silu(x)?.permute(order.as_slice())?;
                ops::silu(&ops::rms_norm(&x, &weight, 1e-2)?)
            });
        }
    }
}

#[test]
fn norms_agree_with_candle_in_any_order() {
    for width in [1, 3, 7, 13, 17, 100] {
        let x = fixed((2, width, 3, 2), DType::F32, 1);
        let x = x.permute((0, 2, 3, 1)).unwrap();
        let (weight, bias) = (fixed(width, DType::F32, 2), fixed(width, DType::F32, 3));
        let candle = x.contiguous().unwrap();
        let ours = ops::layer_norm(&x, &weight, &bias, 1e-5).unwrap();
        let theirs = candle_nn::ops::layer_norm_slow(&candle, &weight, &bias, 1e-5).unwrap();
        lora_tests::assert_close("layer_norm", &ours, &theirs, 1e-6);
        let ours = ops::rms_norm(&x, &weight, 1e-5).unwrap();
        let theirs = candle_nn::ops::rms_norm_slow(&candle, &weight, 1e-5).unwrap();
        lora_tests::assert_close("rms_norm", &ours, &theirs, 1e-6);
    }
}

#[test]
fn group_norm_op() {
    for (shape, groups) in [
        (vec![2, 6, 5], 3),
        (vec![2, 6, 3, 3], 1),
        (vec![3, 4, 1, 7], 4),
        (vec![1, 4, 2], 2),
        (vec![2, 2, 17], 2),
    ] {
        let (x, weight, bias) = (var(shape.clone(), 1), var(shape[1], 2), var(shape[1], 3));
        let vars = [("x", &x), ("weight", &weight), ("bias", &bias)];
        check_gradients(&format!("{shape:?} {groups}"), &vars, || {
            ops::group_norm(&x, &weight, &bias, groups, 1e-5)
        });
        let ours = ops::group_norm(&x, &weight, &bias, groups, 1e-5).unwrap();
        let (w, b) = (weight.as_tensor().clone(), bias.as_tensor().clone());
        let candle = GroupNorm::new(w, b, shape[1], groups, 1e-5).unwrap();
        let theirs = candle.forward(&x).unwrap();
        lora_tests::assert_close("candle", &ours, &theirs, 1e-12);
    }
    let (x, weight) = (var((2, 3, 4, 6), 1), var(6, 2));
    check_gradients("permuted", &[("x", &x), ("weight", &weight)], || {
        let x = x.permute((0, 3, 1, 2))?;
        ops::group_norm(&x, &weight, &fixed(6, F64, 3), 3, 1e-5)
    });
    let x = x.permute((0, 3, 1, 2)).unwrap();
    for groups in [0, 4] {
        assert!(ops::group_norm(&x, &weight, &weight, groups, 1e-5).is_err());
    }
    assert!(ops::group_norm(&x, &var(5, 2), &weight, 1, 1e-5).is_err());
    assert!(ops::group_norm(&x, &weight, &var(5, 2), 1, 1e-5).is_err());
}

#[test]
fn affine_along_any_dimension_of_any_order() {
    for n in [1, 3, 7, 13, 17] {
        let (weight, bias) = (var(n, 2), var(n, 3));
        for (dim, shape) in [(0, (n, 2, 3)), (1, (2, n, 3)), (2, (2, 3, n))] {
            let x = var(shape, 1);
            let vars = [("x", &x), ("weight", &weight), ("bias", &bias)];
            let what = format!("{n} {dim}");
            check_gradients(&what, &vars, || ops::affine(&x, &weight, Some(&bias), dim));
            check_gradients(&what, &vars[..1], || {
                ops::affine(&x, &weight.as_detached_tensor(), None, dim)
            });
            // The same dimension where it lies in memory, seen from elsewhere.
            let turned = (dim + 1) % 3;
            check_gradients(&format!("turned {what}"), &vars, || {
                let x = x.permute((2, 0, 1))?;
                let y = ops::affine(&x, &weight, Some(&bias), turned)?;
                assert!(n == 1 || y.stride() == x.stride());
                Ok(y)
            });
        }
    }
    let x = var((2, 3, 4), 1);
    assert!(ops::affine(&x, &var(3, 2), Some(&var(4, 3)), 1).is_err());
    assert!(ops::affine(&x, &fixed(3, DType::F32, 2), None, 1).is_err());
}

#[test]
fn shortcuts() {
    for n in [1, 3, 7, 13, 17] {
        let (x, branch, gamma) = (var((2, n, 3), 1), var((2, n, 3), 2), var(n, 3));
        let last = var((2, 3, n), 4);
        let vars = [("x", &x), ("branch", &branch), ("gamma", &gamma)];
        let what = |what: &str| format!("{what} {n}");
        check_gradients(&what("residual"), &vars, || {
            ops::residual(&x, &branch, Some(&gamma), 1)
        });
        check_gradients(&what("no gamma"), &vars[..2], || {
            ops::residual(&x, &branch, None, 1)
        });
        check_gradients(&what("add"), &vars[..2], || ops::add(&x, &branch));
        check_gradients(&what("twice"), &vars[..1], || ops::add(&x, &x));
        let frozen = gamma.as_detached_tensor();
        check_gradients(&what("frozen"), &vars[..2], || {
            ops::residual(&x, &branch, Some(&frozen), 1)
        });

        // Both permuted alike, then each alone; on the tape and off it.
        let permuted = [("x", &last), ("branch", &branch), ("gamma", &gamma)];
        for taped in [false, true] {
            let seen = |x: &Var| {
                if taped {
                    ops::silu(x)
                } else {
                    Ok(x.as_tensor().clone())
                }
            };
            check_gradients(&what("alike"), &permuted[..1], || {
                let x = seen(&last)?.permute((0, 2, 1))?;
                let y = ops::residual(&x, &x, Some(&frozen), 1)?;
                assert!(n == 1 || y.stride() == x.stride());
                Ok(y)
            });
            check_gradients(&what("x permuted"), &permuted, || {
                let x = seen(&last)?.permute((0, 2, 1))?;
                let y = ops::residual(&x, &seen(&branch)?, Some(&gamma), 1)?;
                assert!(n == 1 || y.stride() == x.stride());
                Ok(y)
            });
            let permuted = [("x", &x), ("branch", &last), ("gamma", &gamma)];
            check_gradients(&what("branch permuted"), &permuted, || {
                let branch = seen(&last)?.permute((0, 2, 1))?;
                ops::residual(&seen(&x)?, &branch, Some(&gamma), 1)
            });
            check_gradients(&what("added"), &permuted[..2], || {
                let branch = seen(&last)?.permute((0, 2, 1))?;
                ops::add(&branch, &seen(&x)?)
            });
        }
    }
    let (x, gamma) = (var((2, 3, 4), 1), var(3, 2));
    assert!(ops::add(&x, &var((2, 4, 3), 2)).is_err());
    assert!(ops::add(&x, &fixed((2, 3, 4), DType::F32, 2)).is_err());
    assert!(ops::residual(&x, &x, Some(&gamma), 2).is_err());
    assert!(ops::residual(&x, &x, Some(&gamma), 3).is_err());
    assert!(ops::residual(&x, &var((2, 3), 2), Some(&gamma), 1).is_err());
}

#[test]
fn a_frozen_gamma_gets_no_gradient() {
    let (x, branch, gamma) = (var((2, 3), 1), var((2, 3), 2), fixed(3, F64, 3));
    let y = ops::residual(&x, &branch.as_detached_tensor(), Some(&gamma), 1).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some() && grads.get(&gamma).is_none());
    let frozen = ops::add(&x.as_detached_tensor(), &branch.as_detached_tensor()).unwrap();
    assert!(!frozen.track_op());
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
fn empty_norms_and_shortcuts() {
    let (x, weight) = (var((0, 4, 3), 1), var(4, 2));
    let vars = [&x, &weight];
    let check = |y: Result<Tensor>, dims: &[usize]| {
        let y = y.unwrap();
        assert_eq!(y.dims(), dims);
        let grads = y.sum_all().unwrap().backward().unwrap();
        for var in vars {
            let grad = grads.get(var).unwrap();
            assert_eq!(grad.dims(), var.dims());
            assert!(lora_tests::values(grad).unwrap().iter().all(|v| *v == 0.0));
        }
    };
    let last = || x.transpose(1, 2).unwrap();
    check(ops::layer_norm(&last(), &weight, &weight, 1e-5), &[0, 3, 4]);
    check(ops::rms_norm(&last(), &weight, 1e-5), &[0, 3, 4]);
    check(ops::group_norm(&x, &weight, &weight, 2, 1e-5), &[0, 4, 3]);
    check(ops::affine(&x, &weight, Some(&weight), 1), &[0, 4, 3]);
    check(ops::affine(&last(), &weight, None, 2), &[0, 3, 4]);
    check(ops::residual(&x, &x, Some(&weight), 1), &[0, 4, 3]);
    // Rows without a number.
    let (x, weight) = (var((2, 0), 1), var(0, 2));
    assert_eq!(ops::rms_norm(&x, &weight, 1e-5).unwrap().dims(), [2, 0]);
    assert_eq!(ops::affine(&x, &weight, None, 1).unwrap().dims(), [2, 0]);
    assert_eq!(ops::add(&x, &x).unwrap().dims(), [2, 0]);
}

#[test]
fn half_norms_and_shortcuts_are_rounded_once() {
    for (dtype, precision) in [(DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)] {
        let half = |shape: Vec<usize>, seed| fixed(shape, dtype, seed);
        let wide = |x: &Tensor| x.to_dtype(F64).unwrap();
        let (x, branch) = (half(vec![2, 6, 5], 1), half(vec![2, 6, 5], 2));
        let (weight, bias) = (half(vec![6], 3), half(vec![6], 4));
        type Op = fn(&Tensor, &Tensor, &Tensor, &Tensor) -> Result<Tensor>;
        let all: [(&str, Op); 5] = [
            ("layer_norm", |x, _, w, b| {
                ops::layer_norm(&x.transpose(1, 2)?, w, b, 1e-5)
            }),
            ("group_norm", |x, _, w, b| ops::group_norm(x, w, b, 3, 1e-5)),
            ("affine", |x, _, w, b| ops::affine(x, w, Some(b), 1)),
            ("residual", |x, y, w, _| ops::residual(x, y, Some(w), 1)),
            ("add", |x, y, _, _| ops::add(x, y)),
        ];
        for (what, op) in all {
            let ours = op(&x, &branch, &weight, &bias).unwrap();
            assert_eq!(ours.dtype(), dtype);
            let exact = op(&wide(&x), &wide(&branch), &wide(&weight), &wide(&bias)).unwrap();
            lora_tests::assert_close(what, &ours, &exact, precision);
        }
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

#[test]
fn lora_linear() {
    let base = Linear::new(fixed((4, 5), F64, 1), Some(fixed(4, F64, 2)));
    let config = LoraConfig::new(2)
        .alpha(3.0)
        .train_bias(TrainBias::LoraOnly);
    let model = base.to_lora(&config).unwrap();
    for shape in [vec![2, 5], vec![2, 3, 5], vec![2, 1, 3, 5]] {
        check_model("LoraLinear", &model, &var(shape, 3), |x| model.forward(x));
    }
}

#[test]
fn lora_convolutions() {
    for (channels, out, kernel, config, (h, w)) in conv2d_configs() {
        let weight = fixed((out, channels / config.groups, kernel, kernel), F64, 1);
        let base = Conv2d::new(weight, Some(fixed(out, F64, 2)), config);
        let lora = LoraConfig::new(4).train_bias(TrainBias::All);
        let model = base.to_lora(&lora).unwrap();
        let x = var((2, channels, h, w), 3);
        check_model(&format!("LoraConv2d {config:?}"), &model, &x, |x| {
            model.forward(x)
        });
    }
    for (padding, stride, dilation, groups) in [(0, 1, 1, 1), (2, 3, 2, 1), (1, 2, 1, 2)] {
        let config = Conv1dConfig {
            padding,
            stride,
            dilation,
            groups,
            cudnn_fwd_algo: None,
        };
        let base = Conv1d::new(
            fixed((6, 4 / groups, 3), F64, 1),
            Some(fixed(6, F64, 2)),
            config,
        );
        let model = base.to_lora(&LoraConfig::new(2)).unwrap();
        let x = var((2, 4, 8), 3);
        check_model(&format!("LoraConv1d {config:?}"), &model, &x, |x| {
            model.forward(x)
        });
    }
}

#[test]
fn lora_embedding() {
    let base = Embedding::new(fixed((6, 3), F64, 1), 3);
    let model = base.to_lora(&LoraConfig::new(2)).unwrap();
    let ids = Tensor::new(&[[1u32, 5, 1]], &candle_core::Device::Cpu).unwrap();
    check_model(
        "LoraEmbedding",
        &model,
        &Var::from_tensor(&ids).unwrap(),
        |ids| model.forward(ids),
    );
}

#[test]
fn frozen_norms_pass_the_gradient() {
    let x = var((2, 6, 5), 3);
    let last = var((2, 5, 6), 3);
    let (weight, bias) = (fixed(6, F64, 1), fixed(6, F64, 2));

    let base = LayerNorm::new(weight.clone(), bias.clone(), 1e-5);
    let model = base.to_frozen().unwrap();
    check_model("LayerNorm", &model, &last, |x| model.forward(x));
    let base = LayerNorm::new_no_bias(weight.clone(), 1e-5);
    let model = base.to_frozen().unwrap();
    check_model("LayerNorm without bias", &model, &last, |x| {
        model.forward(x)
    });
    let base = RmsNorm::new(weight.clone(), 1e-5);
    let model = base.to_frozen().unwrap();
    check_model("RmsNorm", &model, &last, |x| model.forward(x));
    let base = GroupNorm::new(weight.clone(), bias.clone(), 6, 3, 1e-5).unwrap();
    let model = base.to_frozen().unwrap();
    check_model("GroupNorm", &model, &x, |x| model.forward(x));
    let (mean, variance) = (fixed(6, F64, 4), fixed(6, F64, 5).sqr().unwrap());
    let base = BatchNorm::new(6, mean, variance, weight, bias, 1e-5).unwrap();
    let model = base.to_frozen().unwrap();
    check_model("BatchNorm", &model, &x, |x| model.forward_t(x, true));
}

#[test]
fn trained_norms_get_gradients() {
    let x = var((2, 6, 5), 3);
    let (weight, bias) = (fixed(6, F64, 1), fixed(6, F64, 2));
    // A Linear beside each norm gives the conversion something to adapt.
    let linear = Linear::new(fixed((2, 3), F64, 6), None);
    let config = LoraConfig::new(1)
        .target_modules(["1"])
        .modules_to_save(["0"]);

    let norm = LayerNorm::new(weight.clone(), bias.clone(), 1e-5);
    let model = (norm, linear.clone()).to_lora(&config).unwrap();
    let last = var((2, 5, 6), 3);
    check_model("LayerNorm", &model.0, &last, |x| model.0.forward(x));
    assert_eq!(model.0.trainable_vars().len(), 2);

    let norm = GroupNorm::new(weight.clone(), bias.clone(), 6, 2, 1e-5).unwrap();
    let model = (norm, linear.clone()).to_lora(&config).unwrap();
    check_model("GroupNorm", &model.0, &x, |x| model.0.forward(x));
    assert_eq!(model.0.trainable_vars().len(), 2);

    let (mean, variance) = (fixed(6, F64, 4), fixed(6, F64, 5).sqr().unwrap());
    let norm = BatchNorm::new(6, mean, variance, weight, bias, 1e-5).unwrap();
    let model = (norm, linear).to_lora(&config).unwrap();
    check_model("BatchNorm", &model.0, &x, |x| model.0.forward_t(x, true));
    assert_eq!(model.0.trainable_vars().len(), 2);
}
