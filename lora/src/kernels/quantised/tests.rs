use super::*;
use crate::kernels::simd::testing::{assert_close, at_every_level, values};
use candle_core::{Device, Tensor};

/// A weight whose blocks differ in scale, and its values as candle dequantises them.
fn weight(dtype: GgmlDType, outputs: usize, inputs: usize) -> (QTensor, Vec<f32>) {
    let mut full = values::<f32>(outputs * inputs, outputs);
    for (index, value) in full.iter_mut().enumerate() {
        *value *= 1.0 + (index / 16 % 7) as f32;
    }
    let full = Tensor::from_vec(full, (outputs, inputs), &Device::Cpu).unwrap();
    let blocks = QTensor::quantize(&full, dtype).unwrap();
    let full = blocks.dequantize(&Device::Cpu).unwrap();
    let full = full.flatten_all().unwrap().to_vec1().unwrap();
    (blocks, full)
}

#[test]
fn values_are_candles_to_the_last_bit() {
    at_every_level(|level| {
        for dtype in GGML_TYPES {
            let (blocks, full) = weight(dtype, 5, 768);
            let ours = Blocks::of(&blocks).unwrap();
            assert_eq!(ours.rows(0..5), full, "{dtype:?} at {level:?}");
            assert_eq!(ours.rows(2..4), full[2 * 768..4 * 768], "{dtype:?}");
        }
    });
}

#[test]
fn every_half_number_is_read() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let blocks = Blocks::new(GgmlDType::F16, Cow::Owned(bytes), 1, 1 << 16).unwrap();
    at_every_level(|_| {
        for (bits, value) in (0..=u16::MAX).zip(blocks.rows(0..1)) {
            let expected = half::f16::from_bits(bits).to_f32();
            let both_nan = value.is_nan() && expected.is_nan();
            assert!(
                both_nan || value.to_bits() == expected.to_bits(),
                "{bits:x}: {value}"
            );
        }
    });
}

/// x·Wᵀ or x·W, added to y, in f64.
fn expected(
    y: &[f64],
    x: &[f64],
    w: &[f32],
    (outputs, inputs): (usize, usize),
    pass: Direction,
) -> Vec<f64> {
    let (width, depth) = match pass {
        Direction::Forward => (outputs, inputs),
        Direction::Backward => (inputs, outputs),
    };
    let mut sums = y.to_vec();
    for (y, x) in sums.chunks_mut(width).zip(x.chunks(depth)) {
        for (column, y) in y.iter_mut().enumerate() {
            for (at, x) in x.iter().enumerate() {
                let weight = match pass {
                    Direction::Forward => w[column * inputs + at],
                    Direction::Backward => w[at * inputs + column],
                };
                *y += x * f64::from(weight);
            }
        }
    }
    sums
}

fn check<T: Element>(dtype: GgmlDType, shape: (usize, usize), rows: usize, tolerance: f64) {
    let (blocks, full) = weight(dtype, shape.0, shape.1);
    let blocks = Blocks::of(&blocks).unwrap();
    for pass in [Direction::Forward, Direction::Backward] {
        let (width, depth) = match pass {
            Direction::Forward => shape,
            Direction::Backward => (shape.1, shape.0),
        };
        let (x, y) = (
            values::<f64>(rows * depth, 1),
            values::<f64>(rows * width, 2),
        );
        let cast = |x: &[f64]| -> Vec<T> { x.iter().map(|&x| T::of(x)).collect() };
        for (add, threads) in [(false, Threads::All), (true, Threads::One)] {
            let mut ours = cast(&y);
            blocks.multiply(&mut ours, &cast(&x), pass, add, threads);
            let start = if add { y.clone() } else { vec![0.0; y.len()] };
            let exact = expected(&start, &x, &full, shape, pass);
            let what = format!("{dtype:?} {shape:?}, {rows} rows, {pass:?}, add {add}");
            assert_close(&what, &ours, &exact, tolerance);
        }
    }
}

#[test]
fn products_of_every_type_are_right() {
    at_every_level(|_| {
        for dtype in GGML_TYPES {
            check::<f32>(dtype, (37, 256), 7, 1e-5);
            check::<f64>(dtype, (9, 512), 3, 1e-13);
        }
    });
}

/// Sizes at the borders of panels, and shared out among rows where the panels are few.
#[test]
fn products_of_every_size_are_right() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
    pool.unwrap().install(|| {
        for rows in (1..=70).step_by(3) {
            check::<f32>(GgmlDType::Q4_1, (17, 64), rows, 1e-5);
        }
        for (outputs, inputs) in [(1, 32), (300, 96), (700, 672), (5, 1312), (1313, 32)] {
            check::<f32>(GgmlDType::Q8_0, (outputs, inputs), 66, 1e-5);
        }
        check::<f32>(GgmlDType::Q6K, (3, 1792), 70, 1e-5);
    });
}

/// The threads finish at about the same time, however few panels there are.
#[test]
fn the_work_is_shared_out_evenly() {
    for (rows, width) in [
        (512, 768),
        (512, 576),
        (512, 1536),
        (256, 2048),
        (256, 256),
        (512, 192),
    ] {
        for across in [16, 32, 256] {
            for threads in [1, 2, 4] {
                let (height, panel) = tile_size((rows, width), across, threads);
                assert!(panel.is_multiple_of(across) && panel <= WIDTH + WIDTH / 4);
                let tiles = rows.div_ceil(height) * width.div_ceil(panel);
                let whole = width.next_multiple_of(across);
                let busy = tiles.div_ceil(threads) * height * panel.min(whole) * threads;
                let share = busy as f64 / (rows * whole) as f64;
                assert!(share <= 1.15, "{rows} {width} {across} {threads}: {share}");
            }
        }
    }
    // Three panels for two threads: each is dequantised for half of the rows.
    assert_eq!(tile_size((512, 768), 256, 2), (256, 256));
    assert_eq!(tile_size((512, 576), 32, 2), (512, 288));
}

#[test]
fn nothing_is_read_beyond_the_blocks() {
    let empty = Blocks::new(GgmlDType::Q4_0, Cow::Owned(vec![]), 0, 32).unwrap();
    let mut y = vec![1f32; 64];
    empty.multiply(&mut y, &[], Direction::Backward, false, Threads::All);
    assert_eq!(y, [0.0; 64]);
    for (bytes, inputs) in [(17, 32), (18, 31), (36, 32)] {
        let blocks = Blocks::new(GgmlDType::Q4_0, Cow::Owned(vec![0; bytes]), 1, inputs);
        let error = blocks.unwrap_err().to_string();
        let text = format!("{bytes} bytes are no Q4_0 of shape [1, {inputs}]");
        assert!(error.starts_with(&text), "{error}");
    }
}
