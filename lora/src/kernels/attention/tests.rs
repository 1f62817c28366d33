use super::*;
use crate::kernels::simd::testing::at_every_level;
use candle_core::WithDType;

const SIZES: Sizes = Sizes {
    batch: 2,
    heads: 4,
    kv_heads: 2,
    queries: 70,
    keys: 300,
    dim: 5,
    value_dim: 3,
};

/// Arguments of [`SIZES`] in the order (batch, heads, rows, dim), of small numbers.
struct Arguments<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    mask: Vec<T>,
    grad: Vec<T>,
}

fn numbers<T: Element>(count: usize, seed: f64) -> Vec<T> {
    (0..count)
        .map(|i| T::of((i as f64 * 1.7 + seed).sin()))
        .collect()
}

fn steps([_, heads, rows, dim]: [usize; 4]) -> [usize; 4] {
    [heads * rows * dim, rows * dim, dim, 1]
}

impl<T: Element> Arguments<T> {
    fn new() -> Self {
        let rows = 2 * 4 * 70;
        let mut mask = numbers::<T>(300, 4.0);
        mask[17] = T::of(f64::NEG_INFINITY);
        Self {
            q: numbers(rows * 5, 1.0),
            k: numbers(2 * 2 * 300 * 5, 2.0),
            v: numbers(2 * 2 * 300 * 3, 3.0),
            mask,
            grad: numbers(rows * 3, 5.0),
        }
    }

    /// The output, and the gradients of q, k and v, over so many keys. The gradients of few keys need no
    /// output.
    fn results(&self, keys: usize) -> [Vec<f64>; 4] {
        let sizes = Sizes { keys, ..SIZES };
        let heads = |values, shape| Heads {
            values,
            steps: steps(shape),
        };
        let attention = Attention {
            q: heads(&self.q, [2, 4, 70, 5]),
            k: heads(&self.k, [2, 2, 300, 5]),
            v: heads(&self.v, [2, 2, 300, 3]),
            mask: Some(Heads {
                values: &self.mask,
                steps: [0, 0, 0, 1],
            }),
            sizes,
            visible: Visible {
                causal: true,
                window: Some((150, 3)),
                sequences: &[],
            },
            dropout: Some(Dropout::new(0.2, 5)),
            scale: 2.0,
            cap: Some(3.0),
            first: 0,
            threads: Threads::All,
        };
        let (output, log_sums) = forward(&attention);
        let given = Given {
            output: sizes.needs_output().then_some(&output),
            grad: &self.grad,
            log_sums: &log_sums,
        };
        let wanted = Gradients {
            q: Some(RowOrder::RowsFirst),
            k: Some(RowOrder::HeadsFirst),
            v: Some(RowOrder::RowsFirst),
        };
        let grads = backward(&attention, given, &wanted);
        let results = [Some(output), grads.q, grads.k, grads.v];
        results.map(|values| values.unwrap().into_iter().map(WithDType::to_f64).collect())
    }
}

#[test]
fn every_level_computes_the_same() {
    for keys in [300, 187] {
        let exact = Arguments::<f64>::new().results(keys);
        at_every_level(|level| {
            let results = Arguments::<f32>::new().results(keys);
            for (index, (values, exact)) in results.iter().zip(&exact).enumerate() {
                let largest = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                for (value, exact) in values.iter().zip(exact) {
                    let error = (value - exact).abs() / largest;
                    assert!(
                        error < 5e-6,
                        "{level:?} {keys} {index}: {value} for {exact}"
                    );
                }
            }
        });
    }
}

/// Attention over nothing, of so many queries and keys.
fn attention(queries: usize, keys: usize, visible: Visible<'_>) -> Attention<'_, f32> {
    let heads = Heads {
        values: &[],
        steps: [0; 4],
    };
    Attention {
        q: heads,
        k: heads,
        v: heads,
        mask: None,
        sizes: Sizes {
            queries,
            keys,
            ..SIZES
        },
        visible,
        dropout: None,
        scale: 1.0,
        cap: None,
        first: 0,
        threads: Threads::All,
    }
}

#[test]
fn tiles_are_those_that_are_seen() {
    let causal = Visible {
        causal: true,
        ..Visible::default()
    };
    let longer = attention(64, 600, causal);
    assert_eq!((longer.seen(0, 0), longer.seen(0, 63)), (0..537, 0..600));
    let blocks: Vec<_> = longer.key_blocks(0, &(0..4)).collect();
    assert_eq!(blocks, [0..256, 256..512, 512..540]);
    let shorter = attention(5, 3, causal);
    let seen = [0, 1, 2, 3, 4].map(|query| shorter.seen(0, query));
    assert_eq!(seen, [0..0, 0..0, 0..1, 0..2, 0..3]);

    let window = |causal, window| Visible {
        causal,
        window: Some(window),
        sequences: &[],
    };
    let local = attention(600, 600, window(false, (10, 20)));
    assert_eq!(
        [0, 300, 599].map(|query| local.seen(0, query)),
        [0..21, 290..321, 589..600]
    );
    assert_eq!(local.key_blocks(0, &(300..304)).next(), Some(290..324));
    let sliding = attention(5, 3, window(true, (1, usize::MAX)));
    let seen = [0, 1, 2, 3, 4].map(|query| sliding.seen(0, query));
    assert_eq!(seen, [0..0, 0..0, 0..1, 0..2, 1..3]);

    // Batch 1: three sequences in six places, the last query of the first one and two more.
    let sequences = [0..6, 0..6, 0..6, 0..2, 2..5, 5..6];
    let packed = attention(
        3,
        6,
        Visible {
            causal: true,
            sequences: &sequences,
            ..Visible::default()
        },
    );
    let seen = [0, 1, 2].map(|query| packed.seen(1, query));
    assert_eq!(seen, [0..2, 2..5, 5..6]);
}

/// A thread holds a few tiles and a head's gradients of keys and values, whatever the length.
#[test]
fn tiles_do_not_grow() {
    let causal = Visible {
        causal: true,
        ..Visible::default()
    };
    let tile = |length, visible| attention(length, length, visible).tile();
    assert_eq!(tile(1 << 20, Visible::default()), QUERIES * KEYS);
    assert_eq!(tile(1 << 20, causal), 2 * QUERIES_OF_A_BAND * KEYS);
    assert_eq!(tile(128, causal), QUERIES_OF_A_BAND * 128);
    assert_eq!(tile(10, causal), 100);
    // 300 queries are two blocks of the same size.
    assert_eq!(tile(300, Visible::default()), 150 * KEYS);
}

#[test]
fn rows_are_found_in_both_orders() {
    for order in [RowOrder::HeadsFirst, RowOrder::RowsFirst] {
        let mut values: Vec<usize> = (0..2 * 3 * 4 * 5).collect();
        let heads = by_head(&mut values, order, (3, 4, 5));
        assert_eq!(heads.len(), 6);
        let first = heads[4].iter().map(|row| row[0]);
        let (start, step) = match order {
            RowOrder::HeadsFirst => (60 + 20, 5),
            RowOrder::RowsFirst => (60 + 5, 15),
        };
        assert!(first.eq((0..4).map(|row| start + row * step)), "{order:?}");
    }
    assert!(by_head::<u8>(&mut [], RowOrder::HeadsFirst, (3, 0, 5)).is_empty());
}
