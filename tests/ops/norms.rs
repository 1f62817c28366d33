//! Norms, scales and shortcuts: values against candle's, gradients against finite differences in f64.

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{GroupNorm, Module};
use lora::ops;
use lora_tests::{check_gradients, fixed, var};

const F64: DType = DType::F64;

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
