//! What concerns the whole process, one test at a time: the vector instructions that the kernels
//! use, and that graphs leave nothing behind.

use candle_core::{DType, Tensor, Var};
use lora::__private::{Level, force_simd, recorded_values};
use lora::ops;
use lora_tests::fixed;
use lora_tests::op_fixtures::{THEMES, cases};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keeps the other tests waiting.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn every_op_on_every_level() {
    let _alone = alone();
    let cases: Vec<_> = THEMES.iter().flat_map(|theme| cases(theme)).collect();
    for wanted in [Level::Plain, Level::Avx2, Level::Avx512] {
        // A processor without it runs the next lower again.
        let level = force_simd(wanted);
        for case in &cases {
            case.check(&format!("{level:?}"), DType::F32, 1e-5);
            case.check(&format!("{level:?} f64"), DType::F64, 2e-7);
        }
    }
}

#[test]
fn graphs_leave_nothing_behind() {
    let _alone = alone();
    let before = recorded_values();
    let w = Var::from_tensor(&fixed((4, 4), DType::F32, 1)).unwrap();
    let x = fixed((3, 4), DType::F32, 2);
    let mut held: Vec<Tensor> = Vec::new();
    for pass in 0..3 {
        let y = ops::linear(&x, &w, None).unwrap();
        let z = ops::silu(&y.t().unwrap()).unwrap();
        let empty = ops::silu(&y.narrow(0, 0, 0).unwrap()).unwrap();
        assert_eq!(recorded_values(), before + 3);
        let view = z.t().unwrap().reshape((2, 6)).unwrap();
        drop((y, z, empty));
        // The view leads to its value; nothing leads to the others.
        assert_eq!(recorded_values(), before + 1);
        let loss = ops::gelu(&view).unwrap().sum_all().unwrap();
        drop(view);
        match pass {
            // Never run.
            0 => {}
            1 => drop(loss.backward().unwrap()),
            // What is detached holds no graph.
            _ => held.push(ops::linear(&x, &w, None).unwrap().detach()),
        }
        drop(loss);
        assert_eq!(recorded_values(), before);
    }
    assert_eq!(held.len(), 1);

    // Values that go on another thread, and those of a pass that fails.
    let y = ops::linear(&x, &w, None).unwrap();
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let bad = lora::checkpoint(&y, move |x| {
        match calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => ops::silu(x),
            _ => candle_core::bail!("this function fails"),
        }
    });
    let bad = bad.unwrap();
    assert!(bad.backward().is_err());
    std::thread::spawn(move || drop((y, bad))).join().unwrap();
    assert_eq!(recorded_values(), before);
}

/// An op's gradients must not outlive a pass: a variable's gradient is the only one left.
#[test]
fn the_last_handle_frees_a_value() {
    let _alone = alone();
    let w = Var::from_tensor(&fixed((4, 4), DType::F32, 1)).unwrap();
    let before = recorded_values();
    let mut y = w.as_tensor().clone();
    for _ in 0..100 {
        y = ops::silu(&y).unwrap();
        assert_eq!(recorded_values(), before + 1);
    }
    assert!(y.backward().unwrap().get(&w).is_some());
    drop(y);
    assert_eq!(recorded_values(), before);
}
