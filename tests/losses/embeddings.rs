//! What every loss does with any embeddings.

use super::LOSSES;
use candle_core::{DType, Device, Tensor, Var};
use lora_tests::{assert_close, check_gradients, fixed, values, var};

#[test]
fn gradients_are_the_slope() {
    for (name, loss) in LOSSES {
        for (rows, width) in [(2, 3), (5, 4)] {
            let (a, b) = (var((rows, width), 1), var((rows, width), 2));
            check_gradients(name, &[("a", &a), ("b", &b)], || loss(&a, &b));
        }
    }
}

/// An embedding of zeros, and two that are the same, have a loss and gradients that are finite.
#[test]
fn zeros_and_twins_stay_finite() {
    for (name, loss) in LOSSES {
        for dtype in [DType::F32, DType::F64] {
            for kind in ["zeros", "half zeros", "twins"] {
                let a = fixed((4, 6), dtype, 1);
                let (a, b) = match kind {
                    "zeros" => (a.zeros_like().unwrap(), a.zeros_like().unwrap()),
                    "half zeros" => (a.zeros_like().unwrap(), a),
                    _ => (a.clone(), a),
                };
                let [a, b] = [a, b].map(|x| Var::from_tensor(&x).unwrap());
                let value = loss(&a, &b).unwrap();
                let grads = value.backward().unwrap();
                let mut all = values(&value).unwrap();
                for var in [&a, &b] {
                    all.extend(values(grads.get(var).unwrap()).unwrap());
                }
                assert!(
                    all.iter().all(|value| value.is_finite()),
                    "{name}, {kind}, {dtype:?}"
                );
            }
        }
    }
}

/// What is equal pulls nowhere: at the corner of a distance the gradient is 0, as in PyTorch.
#[test]
fn equal_numbers_have_no_gradient() {
    for (name, loss) in LOSSES.iter().take(3) {
        let (a, b) = (var((3, 2), 1), fixed((3, 2), DType::F64, 1));
        let value = loss(&a, &b).unwrap();
        assert_eq!(value.to_scalar::<f64>().unwrap(), 0.0, "{name}");
        let grads = value.backward().unwrap();
        let grad = values(grads.get(&a).unwrap()).unwrap();
        assert!(grad.iter().all(|value| *value == 0.0), "{name}: {grad:?}");
    }
}

/// Half types are computed in f32; their gradients have the dtype of the embeddings.
#[test]
fn half_types_are_computed_in_f32() {
    for (name, loss) in LOSSES {
        for dtype in [DType::BF16, DType::F16] {
            let [a, b] = [1, 2].map(|seed| fixed((4, 6), dtype, seed));
            let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
            let exact = loss(&wide(&a), &wide(&b)).unwrap();
            let a = Var::from_tensor(&a).unwrap();
            let value = loss(&a, &b).unwrap();
            assert_eq!(value.dtype(), DType::F32, "{name}");
            assert_close(name, &value, &exact, 5e-3);
            let grads = value.backward().unwrap();
            assert_eq!(grads.get(&a).unwrap().dtype(), dtype, "{name}");
        }
    }
}

/// Rows of a larger tensor, or a transposed one, are as good as a copy.
#[test]
fn views_are_as_good_as_copies() {
    for (name, loss) in LOSSES {
        let [a, b] = [1, 2].map(|seed| fixed((6, 4), DType::F64, seed));
        let expected = loss(&a, &b).unwrap();
        let turned = a.t().unwrap().contiguous().unwrap().t().unwrap();
        let wide = Tensor::cat(&[&b, &b], 1).unwrap().narrow(1, 4, 4).unwrap();
        assert_close(name, &loss(&turned, &wide).unwrap(), &expected, 1e-12);
    }
}

/// As many hard negatives as one likes, and a batch of one pair with them.
#[test]
fn any_number_of_negatives() {
    use lora::losses::MultipleNegativesRanking;
    let device = &Device::Cpu;
    let anchor = Tensor::new(&[[1f64, 0.]], device).unwrap();
    let loss = |negatives: &[f64]| {
        let negatives = Tensor::from_slice(negatives, (negatives.len() / 2, 2), device).unwrap();
        let ranking = MultipleNegativesRanking::new().scale(1.0);
        let loss = ranking.loss(&anchor, &anchor, Some(&negatives)).unwrap();
        loss.to_scalar::<f64>().unwrap()
    };
    let e = std::f64::consts::E;
    assert!((loss(&[0., 3.]) - ((e + 1.0) / e).ln()).abs() < 1e-12);
    let three = [0., 3., 0., -1., -2., 0.];
    assert!((loss(&three) - ((e + 2.0 + 1.0 / e) / e).ln()).abs() < 1e-12);
}
