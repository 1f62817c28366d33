//! The caches of `lora::ops` hold what candle's hold, and pass the gradient.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::kv_cache;
use lora::ops::{KvCache, RotatingKvCache};
use lora_tests::{assert_close, fixed};

/// Lengths of appended parts, which go round a window of 5 in different ways.
const PARTS: &[&[usize]] = &[
    &[3],
    &[2, 2],
    &[5],
    &[7],
    &[3, 4],
    &[4, 1, 1, 3, 2],
    &[7, 2, 5, 1],
    &[1, 6],
];

#[test]
fn rotating_values_are_those_of_candle() {
    for tracked_from in [0, 1, usize::MAX] {
        for parts in PARTS {
            let mut expected = kv_cache::RotatingKvCache::new(1, 5);
            let mut cache = RotatingKvCache::new(1, 5);
            for (i, &length) in parts.iter().enumerate() {
                let k = fixed((2, length, 3), DType::F32, 2 * i);
                let v = fixed((2, length, 3), DType::F32, 2 * i + 1);
                let (k_all, v_all) = expected.append(&k, &v).unwrap();
                let track = |t: &Tensor| match i >= tracked_from {
                    true => Var::from_tensor(t).unwrap().as_tensor().clone(),
                    false => t.clone(),
                };
                let (k_ours, v_ours) = cache.append(&track(&k), &track(&v)).unwrap();
                let what = format!("{parts:?}, part {i}");
                assert_close(&what, &k_ours, &k_all, 0.0);
                assert_close(&what, &v_ours, &v_all, 0.0);
                assert_close(
                    &what,
                    &cache.k().unwrap().unwrap(),
                    &expected.k().unwrap().unwrap(),
                    0.0,
                );
                assert_close(
                    &what,
                    &cache.v().unwrap().unwrap(),
                    &expected.v().unwrap().unwrap(),
                    0.0,
                );
                assert_eq!(cache.offset(), expected.offset());
                assert_eq!(cache.current_seq_len(), expected.current_seq_len());
                assert_eq!(cache.positions(2), expected.positions(2));
                let mask = |mask: Option<Tensor>| {
                    mask.map(|mask| mask.flatten_all().unwrap().to_vec1::<u8>().unwrap())
                };
                assert_eq!(
                    mask(cache.attn_mask(2, &Device::Cpu).unwrap()),
                    mask(expected.attn_mask(2, &Device::Cpu).unwrap())
                );
            }
        }
    }
}

/// What is returned depends on each part as its values say.
#[test]
fn rotating_gradients() {
    for parts in PARTS {
        let mut cache = RotatingKvCache::new(1, 5);
        let mut vars = Vec::new();
        let mut last = None;
        for (i, &length) in parts.iter().enumerate() {
            let var = Var::from_tensor(&fixed((1, length, 1), DType::F64, i)).unwrap();
            last = Some(cache.append(&var, &var).unwrap());
            vars.push(var);
        }
        let (keys, values) = last.unwrap();
        let grads = (keys * values)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        // Each position that is still in the window gives twice its value, any other nothing.
        let total: usize = parts.iter().sum();
        let longest = parts.last().unwrap().max(&5);
        let mut position = 0;
        for var in &vars {
            let values = lora_tests::values(var).unwrap();
            let grad = match grads.get(var) {
                Some(grad) => lora_tests::values(grad).unwrap(),
                None => vec![0.0; values.len()],
            };
            for (value, grad) in values.iter().zip(grad) {
                let is_held = position + longest >= total;
                let expected = if is_held { 2.0 * value } else { 0.0 };
                assert!((grad - expected).abs() < 1e-12, "{parts:?} at {position}");
                position += 1;
            }
        }
    }
}

#[test]
fn growing_cache() {
    let mut expected = kv_cache::KvCache::new(1, 4);
    let mut cache = KvCache::new(1, 4);
    let mut first = None;
    for (i, length) in [2, 3, 1].into_iter().enumerate() {
        let k = fixed((2, length, 3), DType::F32, 2 * i);
        let v = fixed((2, length, 3), DType::F32, 2 * i + 1);
        let (k_all, v_all) = expected.append(&k, &v).unwrap();
        let var = Var::from_tensor(&v).unwrap();
        let (k_ours, v_ours) = cache.append(&k, &var).unwrap();
        assert_close("keys", &k_ours, &k_all, 0.0);
        assert_close("values", &v_ours, &v_all, 0.0);
        assert_eq!(cache.current_seq_len(), expected.current_seq_len());
        first.get_or_insert(var);
        if i == 2 {
            let grads = v_ours.sum_all().unwrap().backward().unwrap();
            let grad = grads.get(first.as_ref().unwrap()).unwrap();
            assert_eq!(lora_tests::values(grad).unwrap(), vec![1.0; 12]);
        }
    }
    cache.reset();
    assert_eq!(cache.current_seq_len(), 0);
    assert!(cache.k().unwrap().is_none());
    // Without tracked values the buffer of candle serves alone.
    let k = fixed((2, 2, 3), DType::F32, 0);
    assert!(!cache.append(&k, &k).unwrap().0.track_op());
}
