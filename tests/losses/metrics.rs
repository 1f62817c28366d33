//! Metrics against scikit-learn, SciPy and sentence-transformers, and by hand.

use candle_core::{Device, Tensor};
use lora::metrics::{F1, Perplexity, Retrieval, accuracy, pearson, spearman};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

#[derive(Deserialize)]
struct Figures {
    predictions: Vec<u32>,
    labels: Vec<u32>,
    per_class: Vec<[f64; 3]>,
    r#macro: [f64; 3],
    numbers: Vec<f64>,
    others: Vec<f64>,
    pearson: f64,
    spearman: f64,
    scores: Vec<Vec<f32>>,
    relevant: Vec<Vec<usize>>,
    hits: HashMap<usize, f64>,
    recall: HashMap<usize, f64>,
    mrr: HashMap<usize, f64>,
    ndcg: HashMap<usize, f64>,
}

#[track_caller]
fn close(what: &str, found: f64, expected: f64) {
    assert!(
        (found - expected).abs() < 1e-12,
        "{what}: {found}, not {expected}"
    );
}

#[test]
fn figures_are_those_of_other_libraries() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/losses/metrics.json");
    let text = std::fs::read_to_string(path).unwrap();
    let figures: Figures = serde_json::from_str(&text).unwrap();
    let check = |what: &str, found: F1, expected: [f64; 3]| {
        for (found, expected) in [found.precision, found.recall, found.f1]
            .into_iter()
            .zip(expected)
        {
            close(what, found, expected);
        }
    };
    let (predictions, labels) = (&figures.predictions, &figures.labels);
    assert_eq!(figures.per_class.len(), 5);
    for (class, expected) in (0u32..).zip(&figures.per_class) {
        check(
            "class",
            F1::of(predictions, labels, &class).unwrap(),
            *expected,
        );
    }
    check(
        "macro",
        F1::macro_mean(predictions, labels).unwrap(),
        figures.r#macro,
    );
    let (numbers, others) = (&figures.numbers, &figures.others);
    close(
        "pearson",
        pearson(numbers, others).unwrap(),
        figures.pearson,
    );
    close(
        "spearman",
        spearman(numbers, others).unwrap(),
        figures.spearman,
    );
    let scores = Tensor::new(figures.scores, &Device::Cpu).unwrap();
    let found = Retrieval::of_scores(&scores, &figures.relevant).unwrap();
    for (what, expected, of) in [
        ("hits", &figures.hits, Retrieval::hits as fn(&_, usize) -> _),
        ("recall", &figures.recall, Retrieval::recall),
        ("mrr", &figures.mrr, Retrieval::mrr),
        ("ndcg", &figures.ndcg, Retrieval::ndcg),
    ] {
        assert!(expected.len() >= 2);
        for (&k, &expected) in expected {
            close(&format!("{what} at {k}"), of(&found, k).unwrap(), expected);
        }
    }
}

#[test]
fn classes_by_hand() {
    assert_eq!(
        accuracy(&["a", "b", "b"], &["a", "b", "c"]).unwrap(),
        2.0 / 3.0
    );
    let never = F1::of(&[0, 0], &[0, 1], &1).unwrap();
    assert_eq!((never.precision, never.recall, never.f1), (0.0, 0.0, 0.0));
    let absent = F1::of(&[0, 0], &[0, 0], &1).unwrap();
    assert_eq!(
        (absent.precision, absent.recall, absent.f1),
        (0.0, 0.0, 0.0)
    );
    let perfect = F1::macro_mean(&[0, 1, 2], &[0, 1, 2]).unwrap();
    assert_eq!(
        (perfect.precision, perfect.recall, perfect.f1),
        (1.0, 1.0, 1.0)
    );
}

#[test]
fn correlations_by_hand() {
    close(
        "line",
        pearson(&[1., 2., 4.], &[-2., -4., -8.]).unwrap(),
        -1.0,
    );
    // Ranks 1, 2.5, 2.5, 4 and 4, 2.5, 2.5, 1.
    close(
        "ties",
        spearman(&[1., 5., 5., 9.], &[8., 2., 2., 0.]).unwrap(),
        -1.0,
    );
    close(
        "zeros",
        spearman(&[0., -0., 1.], &[3., 3., 4.]).unwrap(),
        1.0,
    );
    assert!(pearson(&[0.1; 3], &[1., 2., 3.]).unwrap().is_nan());
    assert!(spearman(&[1., 2.], &[3., 3.]).unwrap().is_nan());
}

#[test]
fn searches_by_hand() {
    // The first query's two documents come first and third, the second's comes last.
    let scores = Tensor::new(&[[5f32, 1., 3., 2.], [4., 3., 2., 1.]], &Device::Cpu).unwrap();
    let found = Retrieval::of_scores(&scores, &[vec![3, 0], vec![3]]).unwrap();
    close("hits", found.hits(3).unwrap(), 0.5);
    close("recall", found.recall(2).unwrap(), 0.25);
    close("recall", found.recall(100).unwrap(), 1.0);
    close("mrr", found.mrr(10).unwrap(), (1.0 + 0.25) / 2.0);
    close("mrr", found.mrr(3).unwrap(), 0.5);
    let ndcg = (1.0 + 0.5) / (1.0 + 1.0 / 3f64.log2());
    close("ndcg", found.ndcg(3).unwrap(), ndcg / 2.0);
    // Where all scores are alike, documents come in their order.
    let scores = Tensor::new(&[[1f32; 4]; 2], &Device::Cpu).unwrap();
    let found = Retrieval::of_scores(&scores, &[vec![0], vec![2]]).unwrap();
    close("mrr", found.mrr(10).unwrap(), (1.0 + 1.0 / 3.0) / 2.0);
}

#[test]
fn perplexity_is_over_tokens() {
    let mut perplexity = Perplexity::new();
    assert!(perplexity.value().is_nan());
    // A batch without a token has no mean.
    perplexity.add(f64::NAN, 0);
    perplexity.add(10f64.ln(), 1);
    perplexity.add(0.0, 1);
    close("loss", perplexity.loss(), 10f64.ln() / 2.0);
    close("value", perplexity.value(), 10f64.sqrt());
    assert_eq!(perplexity.tokens(), 2);
}
