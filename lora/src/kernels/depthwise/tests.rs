//! Against the definition, with every set of instructions.

use super::*;
use crate::kernels::simd::Level;
use crate::kernels::simd::testing::at_every_level;

fn values(count: usize, seed: usize) -> Vec<f64> {
    let value = |i: usize| ((i + 1 + 101 * seed) as f64 * 0.618_033_988_749_895).fract() - 0.5;
    (0..count).map(value).collect()
}

/// Result, input's gradient and weights' gradient by the definition, of one map.
fn by_definition(
    x: &[f64],
    taps: &[f64],
    grad: &[f64],
    window: &Window,
    channels: usize,
) -> [Vec<f64>; 3] {
    let mut y = vec![0.0; grad.len()];
    let (mut on_x, mut on_taps) = (vec![0.0; x.len()], vec![0.0; taps.len()]);
    for row in 0..window.output.0 {
        for column in 0..window.output.1 {
            for tap in 0..window.taps() {
                let (down, right) = (tap / window.kernel.1, tap % window.kernel.1);
                let Some(from) = window.row(row, down) else {
                    continue;
                };
                let at = column * window.stride + right * window.dilation;
                let at = at as isize - window.padding.1;
                if at < 0 || at >= window.input.1 as isize {
                    continue;
                }
                for channel in 0..channels {
                    let y_at = (row * window.output.1 + column) * channels + channel;
                    let x_at = (from * window.input.1 + at as usize) * channels + channel;
                    let tap = tap * channels + channel;
                    y[y_at] += x[x_at] * taps[tap];
                    on_x[x_at] += grad[y_at] * taps[tap];
                    on_taps[tap] += grad[y_at] * x[x_at];
                }
            }
        }
    }
    [y, on_x, on_taps]
}

fn windows() -> Vec<Window> {
    let window = |input, kernel, stride, dilation, padding: (isize, isize)| {
        let (height, width): (usize, usize) = input;
        let (down, right): (usize, usize) = kernel;
        let side = |length: usize, kernel: usize, padding: isize| {
            (length + 2 * padding as usize - dilation * (kernel - 1) - 1) / stride + 1
        };
        let output = (side(height, down, padding.0), side(width, right, padding.1));
        Window {
            input,
            kernel,
            output,
            stride,
            dilation,
            padding,
        }
    };
    vec![
        window((9, 14), (7, 7), 1, 1, (3, 3)),
        window((5, 9), (3, 3), 1, 1, (1, 1)),
        window((4, 3), (7, 7), 1, 1, (3, 3)),
        window((3, 3), (3, 3), 1, 1, (0, 0)),
        window((8, 11), (3, 5), 2, 1, (1, 2)),
        window((9, 7), (3, 2), 3, 2, (2, 4)),
        window((1, 13), (1, 4), 2, 3, (0, 5)),
        window((6, 5), (2, 2), 1, 1, (3, 3)),
    ]
}

#[track_caller]
fn assert_close<T: Element>(what: &str, actual: &[T], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (actual, expected) in actual.iter().zip(expected) {
        let error = (actual.to_f64() - expected).abs();
        assert!(error <= tolerance, "{what}: an error of {error}");
    }
}

/// Maps with the channels last as maps with the channels first.
fn planes<T: Element>(maps: &[T], pixels: usize, channels: usize) -> Vec<T> {
    let mut planes = vec![T::ZERO; maps.len()];
    let maps = maps.chunks(pixels * channels);
    let pairs = maps.zip(planes.chunks_mut(pixels * channels));
    pairs.for_each(|(from, to)| transpose_block(from, to, 0, pixels, channels));
    planes
}

fn check<T: Element>(level: Level, window: &Window, channels: usize, tolerance: f64) {
    let of = |values: &[f64]| values.iter().map(|&v| T::of(v)).collect::<Vec<T>>();
    let (map, result) = (window.pixels() * channels, window.places() * channels);
    let (x, taps) = (values(2 * map, 1), values(window.taps() * channels, 2));
    let (grad, bias) = (values(2 * result, 3), values(channels, 4));
    let mut expected: [Vec<f64>; 3] = Default::default();
    for (x, grad) in x.chunks(map).zip(grad.chunks(result)) {
        let [y, on_x, on_taps] = by_definition(x, &taps, grad, window, channels);
        expected[0].extend(y.iter().zip(bias.iter().cycle()).map(|(y, bias)| y + bias));
        expected[1].extend(on_x);
        expected[2].resize(on_taps.len(), 0.0);
        expected[2]
            .iter_mut()
            .zip(on_taps)
            .for_each(|(sum, v)| *sum += v);
    }
    let what = format!("{level:?} {window:?} of {channels} channels");
    let (x, taps, grad, bias) = (of(&x), of(&taps), of(&grad), of(&bias));

    let mut y = vec![T::of(9.0); 2 * result];
    forward(&x, &taps, Some(&bias), &mut y, window, channels);
    assert_close(&what, &y, &expected[0], tolerance);
    let mut on_x = vec![T::of(9.0); 2 * map];
    grad_input(&grad, &taps, &mut on_x, window, channels);
    assert_close(&what, &on_x, &expected[1], tolerance);
    let mut on_taps = vec![T::of(9.0); taps.len()];
    grad_weight(&grad, &x, &mut on_taps, window, channels);
    assert_close(&what, &on_taps, &expected[2], 10.0 * tolerance);

    // The same from channels first.
    let [y, on_x, _] = expected;
    let y = planes(&y, window.places(), channels);
    let on_x = planes(&on_x, window.pixels(), channels);
    let x = planes(&x, window.pixels(), channels);
    let w = planes(&taps, window.taps(), channels);
    let mut from_planes = vec![T::of(9.0); 2 * result];
    forward_planes(&x, &w, Some(&bias), &mut from_planes, window, channels);
    assert_close(&what, &from_planes, &y, tolerance);
    let grad = planes(&grad, window.places(), channels);
    let mut from_planes = vec![T::of(9.0); 2 * map];
    grad_input_planes(&grad, &w, &mut from_planes, window, channels);
    assert_close(&what, &from_planes, &on_x, tolerance);
}

#[test]
fn every_level_agrees_with_the_definition() {
    at_every_level(|level| {
        for window in windows() {
            for channels in [1, 3, 7, 13, 17, 96] {
                check::<f32>(level, &window, channels, 4e-6);
                check::<f64>(level, &window, channels, 1e-14);
            }
        }
        check::<f32>(level, &windows()[0], 1000, 4e-6);
    });
}

#[test]
fn rows_are_those_of_the_whole() {
    let (window, channels) = (windows()[0], 17);
    let x = values(window.pixels() * channels, 1);
    let taps = values(window.taps() * channels, 2);
    let mut whole = vec![0.0; window.places() * channels];
    forward(&x, &taps, None, &mut whole, &window, channels);
    let row = window.output.1 * channels;
    for (first, rows) in [(0, 2), (2, 5), (8, 1)] {
        let mut some = vec![0.0; rows * row];
        forward_rows(&x, &taps, None, &mut some, first, &window, channels);
        assert_close("rows", &some, &whole[first * row..][..rows * row], 1e-14);
    }
}
