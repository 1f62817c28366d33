//! The graph that ops make together and with candle's own: which gradients arrive, and how often.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, Var, bail};
use lora::ops;
use lora_tests::{assert_close, check_gradients, fixed, values, var};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

const F64: DType = DType::F64;

/// The identity; its derivative is an error.
struct Fails;

impl CustomOp1 for Fails {
    fn name(&self) -> &'static str {
        "fails"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F64(values), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            bail!("fails: contiguous f64 only");
        };
        let values = values[start..end].to_vec();
        Ok((CpuStorage::F64(values), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        bail!("this derivative fails")
    }
}

/// Two matrices and an input.
fn parts() -> (Var, Var, Var) {
    (var((3, 4), 1), var((4, 4), 2), var((4, 4), 3))
}

fn grad_of(grads: &GradStore, var: &Var) -> Vec<f64> {
    values(grads.get(var).unwrap()).unwrap()
}

#[test]
fn a_value_used_many_times_sums_its_gradients() {
    let (x, w1, w2) = parts();
    let vars = [("x", &x), ("w1", &w1), ("w2", &w2)];
    check_gradients("two ops", &vars, || {
        let y = ops::linear(&x, &w1, None)?;
        ops::gelu_erf(&y)? + ops::linear(&y, &w2, None)?
    });
    check_gradients("an op and candle's", &vars, || {
        let y = ops::linear(&x, &w1, None)?;
        y.sqr()? + ops::linear(&y, &w2, None)?
    });
    check_gradients("candle's, twice", &vars, || {
        let y = ops::linear(&ops::linear(&x, &w1, None)?, &w2, None)?;
        y.sqr()? * y.exp()?
    });
    check_gradients("a view and itself", &vars, || {
        let y = ops::linear(&x, &w1, None)?;
        let z = ops::linear(&y.unsqueeze(0)?, &w2, None)?.squeeze(0)?;
        let t = ops::silu(&y.t()?)?.t()?;
        ((z + t)? + y.narrow(1, 1, 1)?.broadcast_as((3, 4))?)? + &y
    });
    check_gradients("diamonds", &vars, || {
        let mut y = x.as_tensor().clone();
        for _ in 0..3 {
            let left = ops::silu(&ops::linear(&y, &w1, None)?)?;
            let right = ops::linear(&ops::silu(&y)?, &w2, None)?;
            y = ops::affine(&(left + right)?, &fixed(4, F64, 5), None, 1)?;
        }
        Ok(y)
    });
    check_gradients("in all places of one op", &[("w1", &w1)], || {
        let y = ops::silu(&w1)?;
        let z = ops::linear(&y, &y, None)?;
        let q = z.reshape((1, 1, 4, 4))?;
        ops::sdpa(&q, &q, &q, None, true, 0.3, 1.0)
    });
    check_gradients("a variable in all places of one op", &[("w1", &w1)], || {
        ops::linear(&w1, &w1, None)
    });
}

/// A way from one op's value to the next op's input.
type Way = fn(&Tensor) -> Result<Tensor>;

#[test]
fn views_between_ops() {
    let ways: &[(&str, Way)] = &[
        ("reshaped", |y| y.reshape((2, 3, 4))),
        ("flattened", |y| y.flatten(0, 1)),
        ("with dimensions of one", |y| {
            y.unsqueeze(0)?.unsqueeze(3)?.squeeze(3)
        }),
        ("transposed", |y| y.transpose(0, 1)),
        ("permuted", |y| {
            y.reshape((3, 1, 2, 4))?.permute((2, 1, 0, 3))
        }),
        ("permuted and back", |y| {
            y.permute((1, 2, 0))?.permute((2, 0, 1))
        }),
        ("permuted and flat", |y| {
            y.permute((1, 0, 2))?.flatten_all()?.reshape((6, 4))
        }),
        ("a transposed square", |y| {
            y.narrow(0, 0, 1)?.reshape((2, 4))?.narrow(1, 0, 4)
        }),
        ("the start", |y| y.narrow(0, 0, 2)),
        ("the end", |y| y.narrow(0, 1, 2)),
        ("columns of each", |y| {
            Tensor::cat(&[&y.narrow(2, 2, 2)?, &y.narrow(2, 0, 2)?], 2)
        }),
        ("all of it", |y| y.narrow(0, 0, 3)),
        ("a chunk", |y| Ok(y.chunk(3, 0)?[1].clone())),
        ("chunks", |y| Tensor::stack(&y.chunk(2, 1)?, 0)),
        ("broadcast", |y| y.unsqueeze(0)?.broadcast_as((2, 3, 2, 4))),
        ("broadcast to itself", |y| {
            y.broadcast_as((3, 2, 4))?.broadcast_as((1, 3, 2, 4))
        }),
        ("one, broadcast", |y| {
            y.narrow(1, 0, 1)?.broadcast_as((3, 2, 4))
        }),
        ("copied", |y| y.copy()),
        ("made contiguous", |y| y.permute((1, 0, 2))?.contiguous()),
        ("forced contiguous", |y| y.force_contiguous()),
        ("of rows", |y| {
            y.index_select(&Tensor::new(&[2u32, 0, 2, 1], y.device())?, 0)
        }),
        ("of another dtype and back", |y| y.to_dtype(DType::F64)),
        ("an index", |y| y.get(1)),
        ("an index inside", |y| y.transpose(0, 2)?.get_on_dim(1, 1)),
    ];
    let (x, w1, w2) = (var((3, 2, 4), 1), var((4, 4), 2), var((4, 4), 3));
    let vars = [("x", &x), ("w1", &w1), ("w2", &w2)];
    for (name, way) in ways {
        check_gradients(name, &vars, || {
            let y = way(&ops::linear(&x, &w1, None)?)?;
            // The next op wants four columns.
            let y = match y.dims().last() {
                Some(4) => y,
                _ => y.flatten_all()?.reshape(((), 4))?,
            };
            ops::linear(&ops::silu(&y)?, &w2, None)
        });
        check_gradients(&format!("{name}, beside itself"), &vars, || {
            let y = ops::linear(&x, &w1, None)?;
            let sum = ops::silu(&way(&y)?)?.sum_all()?;
            ops::linear(&y, &w2, None)?.broadcast_mul(&sum)
        });
    }
}

#[test]
fn views_of_inputs_and_of_losses() {
    let (x, w) = (var((4, 3, 2), 1), var((4, 4), 2));
    check_gradients("a permuted variable", &[("x", &x), ("w", &w)], || {
        let x = x.permute((2, 1, 0))?;
        ops::linear(&x, &w, None)?
            .permute((1, 2, 0))?
            .narrow(1, 1, 3)
    });
    let square = var((3, 3), 3);
    check_gradients("a transposed weight", &[("w", &square)], || {
        ops::linear(&square, &square.t()?, None)
    });
    // The loss is itself the value of an op, or a view of one.
    let grads = ops::silu(&x).unwrap().backward().unwrap();
    let seen = grad_of(&grads, &x);
    let grads = ops::silu(&x).unwrap().permute((1, 2, 0)).unwrap();
    assert_eq!(grad_of(&grads.backward().unwrap(), &x), seen);
    let sum = ops::silu(&x).unwrap().sum_all().unwrap();
    assert_eq!(grad_of(&sum.backward().unwrap(), &x), seen);
}

#[test]
fn passes_over_one_graph_agree() {
    let (x, w1, w2) = parts();
    let y = ops::gelu(&ops::linear(&x, &w1, None).unwrap()).unwrap();
    let left = ops::linear(&y, &w2, None).unwrap();
    let right = ops::softmax_last_dim(&y).unwrap().sqr().unwrap();
    let (left, right) = (left.sum_all().unwrap(), right.sum_all().unwrap());
    let all = (&left + &right).unwrap();
    let first = all.backward().unwrap();
    let second = all.backward().unwrap();
    // What two losses over the same trunk give is what their sum gives.
    let (left, right) = (left.backward().unwrap(), right.backward().unwrap());
    let third = all.backward().unwrap();
    for var in [&x, &w1] {
        let expected = grad_of(&first, var);
        assert_eq!(grad_of(&second, var), expected);
        assert_eq!(grad_of(&third, var), expected);
        let sum = (left.get(var).unwrap() + right.get(var).unwrap()).unwrap();
        assert_close("sum", &sum, first.get(var).unwrap(), 1e-14);
    }
    assert!(right.get(&w2).is_none());
    // From the middle of the graph.
    let middle = grad_of(&y.backward().unwrap(), &w1);
    let again = ops::gelu(&ops::linear(&x, &w1, None).unwrap()).unwrap();
    assert_eq!(grad_of(&again.backward().unwrap(), &w1), middle);
    assert_eq!(grad_of(&all.backward().unwrap(), &w1), grad_of(&first, &w1));
}

#[test]
fn values_may_go_before_the_pass() {
    let (x, w1, w2) = parts();
    let build = |hold: &mut Vec<Tensor>| {
        let mut y = ops::linear(&x, &w1, None).unwrap();
        for _ in 0..5 {
            hold.push(y.clone());
            y = ops::linear(&ops::silu(&y.t().unwrap()).unwrap().t().unwrap(), &w2, None).unwrap();
            hold.push(y.clone());
            y = ops::softmax_last_dim(&y).unwrap();
            // A place in memory that a value has left.
            drop(ops::silu(&fixed((3, 4), F64, 1)).unwrap());
        }
        y.sqr().unwrap().sum_all().unwrap()
    };
    let mut held = Vec::new();
    let expected = build(&mut held).backward().unwrap();
    let mut gone = Vec::new();
    let loss = build(&mut gone);
    gone.clear();
    let grads = loss.backward().unwrap();
    for var in [&x, &w1, &w2] {
        assert_eq!(grad_of(&grads, var), grad_of(&expected, var));
    }
}

#[test]
fn detached_values_cut_the_graph() {
    let (x, w1, w2) = parts();
    let y = ops::linear(&x, &w1, None).unwrap();
    let z = ops::linear(&y.detach(), &w2, None).unwrap();
    let grads = z.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_none() && grads.get(&w1).is_none() && grads.get(&w2).is_some());
    // Beside the value itself it adds nothing.
    let z = (ops::linear(&y.detach(), &w2, None).unwrap() + &y).unwrap();
    let grads = z.sum_all().unwrap().backward().unwrap();
    let expected = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(grad_of(&grads, &x), grad_of(&expected, &x));
    assert!(!ops::silu(&y.detach()).unwrap().track_op());
}

#[test]
fn a_store_holds_the_variables_only() {
    let (x, w1, w2) = parts();
    let frozen = fixed((4, 4), F64, 5);
    let y = ops::linear(&x, &w1, None).unwrap();
    let y = ops::linear(
        &ops::gelu_erf(&y).unwrap(),
        &frozen,
        Some(&fixed(4, F64, 6)),
    )
    .unwrap();
    let y = ops::rms_norm(&y, &fixed(4, F64, 7), 1e-5).unwrap();
    let y = ops::linear(&y.t().unwrap().t().unwrap(), &w2, None).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    let ids: HashSet<_> = grads.get_ids().copied().collect();
    assert_eq!(ids, HashSet::from([x.id(), w1.id(), w2.id()]));
    assert!(grads.get(&frozen).is_none());
}

#[test]
fn a_pass_that_candle_ends_leaves_nothing_behind() {
    let (x, w1, w2) = parts();
    let trunk = ops::linear(&x, &w1, None).unwrap();
    let good = ops::linear(&trunk, &w2, None).unwrap().sum_all().unwrap();
    let expected = good.backward().unwrap();
    let bad = trunk.apply_op1(Fails).unwrap().sum_all().unwrap();
    // In either order of the two ways to the trunk.
    for bad in [&bad + &good, &good + &bad] {
        for _ in 0..2 {
            let error = bad.as_ref().unwrap().backward().unwrap_err();
            assert!(error.to_string().contains("this derivative fails"));
        }
        let grads = good.backward().unwrap();
        for var in [&x, &w1, &w2] {
            assert_eq!(grad_of(&grads, var), grad_of(&expected, var));
        }
    }
}

/// A function that fails while the switch is on.
fn switched(on: &Arc<AtomicBool>) -> impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static {
    let on = on.clone();
    move |x| {
        if on.load(Relaxed) {
            bail!("this function fails")
        }
        ops::silu(x)
    }
}

#[test]
fn a_pass_that_an_op_ends_leaves_nothing_behind() {
    let (x, w1, w2) = parts();
    let fails = Arc::new(AtomicBool::new(false));
    let trunk = ops::linear(&x, &w1, None).unwrap();
    let other = lora::checkpoint(&trunk, switched(&fails)).unwrap();
    let one = ops::linear(&trunk, &w2, None).unwrap();
    for all in [&one + &other, &other + &one] {
        let all = all.unwrap().sum_all().unwrap();
        let expected = all.backward().unwrap();
        fails.store(true, Relaxed);
        for _ in 0..2 {
            let error = all.backward().unwrap_err();
            assert!(error.to_string().contains("this function fails"));
        }
        fails.store(false, Relaxed);
        let grads = all.backward().unwrap();
        for var in [&x, &w1, &w2] {
            assert_eq!(grad_of(&grads, var), grad_of(&expected, var));
        }
    }
}

/// As when a thread that waits inside of a pass runs another one meanwhile.
#[test]
fn a_pass_inside_of_another() {
    let (x, w1, w2) = parts();
    let fails = Arc::new(AtomicBool::new(false));
    let trunk = ops::linear(&x, &w1, None).unwrap();
    let inner = ops::linear(&trunk, &w2, None).unwrap().sum_all().unwrap();
    let bad = lora::checkpoint(&trunk, switched(&fails)).unwrap();
    let bad = (&inner + bad.sum_all().unwrap()).unwrap();
    let expected_inner = grad_of(&inner.backward().unwrap(), &w1);
    fails.store(true, Relaxed);

    let nested = Arc::new(AtomicBool::new(false));
    let on = nested.clone();
    let (of_inner, var) = (inner.clone(), w1.clone());
    let outer = lora::checkpoint(&trunk, move |x| {
        if on.load(Relaxed) {
            assert_eq!(grad_of(&of_inner.backward()?, &var), expected_inner);
            assert!(bad.backward().is_err());
        }
        ops::silu(x)
    });
    let outer = (outer.unwrap().sum_all().unwrap() + &inner).unwrap();
    let expected = outer.backward().unwrap();
    nested.store(true, Relaxed);
    let grads = outer.backward().unwrap();
    for var in [&x, &w1, &w2] {
        assert_eq!(grad_of(&grads, var), grad_of(&expected, var));
    }
}

#[test]
fn a_checkpoint_may_capture_a_value_of_the_graph() {
    let (x, w1, w2) = parts();
    let run = |checkpointed: bool, first: bool| {
        let trunk = ops::linear(&x, &w1, None)?;
        let captured = trunk.clone();
        let f = move |y: &Tensor| ops::silu(&captured)? * y;
        let y = ops::linear(&x, &w2, None)?;
        let z = if checkpointed {
            lora::checkpoint(&y, f)?
        } else {
            f(&y)?
        };
        let other = ops::gelu_erf(&trunk)?;
        let sum = if first { other + z } else { z + other };
        sum?.sum_all()?.backward()
    };
    for first in [true, false] {
        let grads = run(true, first).unwrap();
        let expected = run(false, first).unwrap();
        for var in [&w1, &w2] {
            let grad = grads.get(var).unwrap();
            assert_close("captured", grad, expected.get(var).unwrap(), 1e-12);
        }
    }
}

#[test]
fn a_panic_in_a_pass_leaves_nothing_behind() {
    let (x, w1, w2) = parts();
    let panics = Arc::new(AtomicBool::new(false));
    let on = panics.clone();
    let trunk = ops::linear(&x, &w1, None).unwrap();
    let other = lora::checkpoint(&trunk, move |x| {
        assert!(!on.load(Relaxed), "a panic on purpose");
        ops::silu(x)
    });
    let (one, other) = (ops::linear(&trunk, &w2, None).unwrap(), other.unwrap());
    for all in [&one + &other, &other + &one] {
        let all = all.unwrap().sum_all().unwrap();
        let expected = all.backward().unwrap();
        panics.store(true, Relaxed);
        let pass = std::panic::AssertUnwindSafe(|| all.backward());
        assert!(std::panic::catch_unwind(pass).is_err());
        panics.store(false, Relaxed);
        let grads = all.backward().unwrap();
        for var in [&x, &w1, &w2] {
            assert_eq!(grad_of(&grads, var), grad_of(&expected, var));
        }
    }
}

#[test]
fn long_chains() {
    let x = var((1, 2), 1);
    let w = Tensor::new(&[[1.0, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
    let mut y = x.as_tensor().clone();
    for _ in 0..1000 {
        y = ops::linear(&y, &w, None).unwrap();
    }
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(grad_of(&grads, &x), [1.0, 1.0]);
}
