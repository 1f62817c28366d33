//! Attention to some of the keys: windows, sequences, dropout. Against masks and finite differences.

use candle_core::{DType, Device, Tensor};
use lora::ops;
use lora_tests::{assert_close, check_gradients, fixed, values, var};

/// What a query sees, beside the definition's mask.
fn seen_by(
    attention: &ops::Attention,
    sees: impl Fn(usize, usize, usize) -> bool,
    (batch, queries, keys): (usize, usize, usize),
) -> (ops::Attention, ops::Attention) {
    let mut mask = Vec::new();
    for batch in 0..batch {
        for query in 0..queries {
            let place = keys + query - queries;
            mask.extend((0..keys).map(|key| match sees(batch, place, key) {
                true => 0.0,
                false => f64::NEG_INFINITY,
            }));
        }
    }
    let shape = (batch, 1, queries, keys);
    let mask = Tensor::from_vec(mask, shape, &Device::Cpu).unwrap();
    (attention.clone(), ops::Attention::new(0.75).mask(&mask))
}

/// Panics unless both give the same, values and gradients.
fn same(what: &str, a: &ops::Attention, b: &ops::Attention, queries: usize, keys: usize) {
    let (q, k, v) = (
        var((2, 4, queries, 3), 1),
        var((2, 2, keys, 3), 2),
        var((2, 2, keys, 5), 3),
    );
    let run = |attention: &ops::Attention| {
        let y = attention.forward(&q, &k, &v).unwrap();
        let loss = (&y * fixed(y.shape(), DType::F64, 4)).unwrap();
        (y, loss.sum_all().unwrap().backward().unwrap())
    };
    let ((y, grads), (expected, others)) = (run(a), run(b));
    assert_close(what, &y, &expected, 1e-12);
    for (name, var) in [("q", &q), ("k", &k), ("v", &v)] {
        let what = format!("{what}: {name}");
        let (ours, expected) = (grads.get(var).unwrap(), others.get(var).unwrap());
        // A query that sees one key has a gradient of zero, but for rounding.
        let zero = |grad: &Tensor| values(grad).unwrap().iter().all(|x| x.abs() < 1e-9);
        match zero(expected) {
            true => assert!(zero(ours), "{what}"),
            false => assert_close(&what, ours, expected, 1e-11),
        }
    }
}

#[test]
fn windows_are_masks() {
    for (queries, keys) in [(1, 1), (7, 7), (3, 9), (70, 300), (300, 300)] {
        for (before, behind) in [(0, 0), (2, 1), (100, 0), (3, usize::MAX)] {
            for causal in [false, true] {
                let attention = ops::Attention::new(0.75).window(before, behind);
                let attention = if causal {
                    attention.causal()
                } else {
                    attention
                };
                let sees = |_, place: usize, key: usize| {
                    let near = key + before >= place && key <= place.saturating_add(behind);
                    near && (!causal || key <= place)
                };
                let (window, mask) = seen_by(&attention, sees, (2, queries, keys));
                let what = format!("{queries} {keys} {before} {behind} {causal}");
                same(&what, &window, &mask, queries, keys);
            }
        }
    }
}

#[test]
fn sequences_are_masks() {
    // A padded batch, one padded in front, and packed texts.
    let padding = |keys: usize| {
        vec![
            vec![1; keys],
            (0..keys).map(|key| i64::from(key < keys / 2)).collect(),
        ]
    };
    let front = |keys: usize| {
        vec![
            (0..keys).map(|key| i64::from(key > 2)).collect(),
            vec![7; keys],
        ]
    };
    let packed = |keys: usize| {
        vec![
            (0..keys as i64).map(|key| key / 3).collect(),
            (0..keys as i64).map(|key| 9 - key / 130).collect(),
        ]
    };
    for (queries, keys) in [(5, 5), (3, 9), (70, 300), (300, 300)] {
        for numbers in [padding(keys), front(keys), packed(keys)] {
            for causal in [false, true] {
                let tensor = Tensor::new(numbers.clone(), &Device::Cpu).unwrap();
                let attention = ops::Attention::new(0.75).sequences(&tensor);
                let attention = if causal {
                    attention.causal()
                } else {
                    attention
                };
                let sees = |batch: usize, place: usize, key: usize| {
                    numbers[batch][place] == numbers[batch][key] && (!causal || key <= place)
                };
                let (sequences, mask) = seen_by(&attention, sees, (2, queries, keys));
                same(
                    &format!("{queries} {keys} {causal}"),
                    &sequences,
                    &mask,
                    queries,
                    keys,
                );
            }
        }
    }
}

#[test]
fn dropout_in_attention() {
    let (q, k, v) = (
        var((2, 4, 7, 3), 1),
        var((2, 2, 9, 3), 2),
        var((2, 2, 9, 2), 3),
    );
    let vars = [("q", &q), ("k", &k), ("v", &v)];
    let attention = ops::Attention::new(0.75)
        .causal()
        .soft_cap(2.0)
        .dropout(0.4);
    check_gradients("dropout", &vars, || {
        ops::seed_dropout(3);
        attention.forward(&q, &k, &v)
    });
    // With values that tell the keys apart, the output shows the probabilities: those of plain
    // attention, over 1 − p, or nothing.
    let keys = 40;
    let (q, k) = (
        fixed((1, 1, 300, 3), DType::F64, 1),
        fixed((1, 1, keys, 3), DType::F64, 2),
    );
    let v = Tensor::eye(keys, DType::F64, &Device::Cpu).unwrap();
    let v = v.reshape((1, 1, keys, keys)).unwrap();
    let plain = ops::Attention::new(1.0);
    let p = values(&plain.forward(&q, &k, &v).unwrap()).unwrap();
    ops::seed_dropout(3);
    let attention = plain.dropout(0.25);
    let dropped = values(&attention.forward(&q, &k, &v).unwrap()).unwrap();
    let mut kept = 0;
    for (p, dropped) in p.iter().zip(&dropped) {
        let is_kept = *dropped != 0.0;
        kept += usize::from(is_kept);
        let expected = if is_kept { p / 0.75 } else { 0.0 };
        assert!(
            (dropped - expected).abs() < 1e-12,
            "{dropped} for {expected}"
        );
    }
    // 12,000 draws: five standard deviations are 0.02.
    let share = kept as f64 / p.len() as f64;
    assert!((share - 0.75).abs() < 0.02, "{share}");
    // The same seed draws the same, another one does not.
    ops::seed_dropout(3);
    assert_eq!(
        values(&attention.forward(&q, &k, &v).unwrap()).unwrap(),
        dropped
    );
    assert_ne!(
        values(&attention.forward(&q, &k, &v).unwrap()).unwrap(),
        dropped
    );
}

#[test]
fn what_attention_refuses() {
    let x = fixed((1, 1, 4, 2), DType::F64, 1);
    let error = |attention: ops::Attention| attention.forward(&x, &x, &x).unwrap_err().to_string();
    let plain = || ops::Attention::new(1.0);
    let numbers = Tensor::new(&[[1u8, 0, 1, 1]], &Device::Cpu).unwrap();
    let message = error(plain().sequences(&numbers));
    assert!(message.starts_with(
        "attention: the keys of sequence 1 do not stand together in row 0: use a mask"
    ));
    let numbers = Tensor::new(&[1u8, 0, 1, 1], &Device::Cpu).unwrap();
    assert!(
        error(plain().sequences(&numbers)).contains("integers of shape [1, 4], they are U8 of [4]")
    );
    for dropout in [-0.1, 1.0, f64::NAN] {
        assert!(error(plain().dropout(dropout)).contains("probability must be in 0..1"));
    }
    for cap in [0.0, -1.0, f64::NAN] {
        assert!(error(plain().soft_cap(cap)).contains("the soft cap must be a positive number"));
    }
}
