//! Several texts packed in a row.

use super::{CASES, read};
use candle_core::{DType, Device, Tensor};
use lora::data::{Pad, Sequence, pack};
use lora_tests::assert_close;

const TEXTS: [&[u32]; 4] = [&[7, 11, 4, 9, 23], &[5, 8, 30], &[12, 6, 19, 40], &[3, 22]];

/// Each text has the logits that it has alone, and the loss is the mean over all their tokens.
#[test]
fn texts_in_a_row_equal_texts_alone() {
    let device = &Device::Cpu;
    let texts = TEXTS.map(|ids| Sequence::new(ids.to_vec()));
    let rows = pack(&texts, 8).unwrap();
    // Where each text went: row, first position, tokens.
    let place = |ids: &'static [u32]| {
        let found = |row: &Sequence| row.ids.windows(ids.len()).position(|part| part == ids);
        let row = rows.iter().position(|row| found(row).is_some()).unwrap();
        (row, found(&rows[row]).unwrap(), ids)
    };
    let places = TEXTS.map(place);
    assert_eq!(
        (rows.len(), rows[1].numbers.as_slice()),
        (2, &[1, 1, 1, 1, 2, 2][..])
    );
    let batch = Pad::new(0)
        .sequences(&rows.iter().collect::<Vec<_>>(), device)
        .unwrap();
    for case in CASES {
        let model = read(case, DType::F64).model;
        let packed = model.forward(&batch.ids, Some(&batch.numbers)).unwrap();
        let (mut sum, mut count) = (0.0, 0.0);
        for (row, first, ids) in places {
            let alone = Tensor::new(ids, device).unwrap().unsqueeze(0).unwrap();
            let logits = model.forward(&alone, None).unwrap().get(0).unwrap();
            let part = packed.get(row).unwrap().narrow(0, first, ids.len());
            assert_close(case, &part.unwrap(), &logits, 1e-9);
            let loss = model.loss(&alone, None, &alone).unwrap();
            let learned = (ids.len() - 1) as f64;
            sum += loss.to_scalar::<f64>().unwrap() * learned;
            count += learned;
        }
        assert_eq!(count, batch.learned as f64);
        let loss = model.loss(&batch.ids, Some(&batch.numbers), &batch.labels);
        let expected = Tensor::new(sum / count, device).unwrap();
        assert_close(case, &loss.unwrap(), &expected, 1e-9);
    }
}

/// Texts that take turns in a row are told apart by a mask of all pairs.
#[test]
fn texts_may_take_turns() {
    let device = &Device::Cpu;
    let model = read("gemma2", DType::F64).model;
    let ids = Tensor::new(&[[7u32, 5, 11, 8, 4, 30, 1]], device).unwrap();
    let numbers = Tensor::new(&[[1u32, 2, 1, 2, 1, 2, 0]], device).unwrap();
    let mixed = model.forward(&ids, Some(&numbers)).unwrap().get(0).unwrap();
    for (start, text) in [(0, [7u32, 11, 4]), (1, [5, 8, 30])] {
        let alone = Tensor::new(&[text], device).unwrap();
        let alone = model.forward(&alone, None).unwrap().get(0).unwrap();
        let places = Tensor::new(&[start, start + 2, start + 4u32], device).unwrap();
        let part = mixed.index_select(&places, 0).unwrap();
        assert_close("gemma2", &part, &alone, 1e-9);
    }
}
