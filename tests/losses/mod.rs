//! `lora::losses` and `lora::metrics`.

mod embeddings;
mod fixtures;
mod metrics;
mod refused;
mod training;

use candle_core::{Result, Tensor};
use lora::losses::{
    CoSent, Distance, MultipleNegativesRanking, Reduction, Similarity, Triplet, cosine_similarity,
    huber, l1, mse,
};

/// A loss that learns from embeddings, by name, with an `a`, a `b` and what else it takes made of them.
type Loss = (&'static str, fn(&Tensor, &Tensor) -> Result<Tensor>);

/// Labels of as many pairs, not in their order.
fn labels(pairs: &Tensor) -> Tensor {
    let rows = pairs.dims()[0];
    let labels: Vec<f32> = (0..rows).map(|row| (row * 3 % 4) as f32 / 4.0).collect();
    Tensor::new(labels, pairs.device()).unwrap()
}

/// The rows in another order.
fn turned(rows: &Tensor) -> Result<Tensor> {
    match rows.elem_count() {
        0 => Ok(rows.clone()),
        _ => rows.roll(1, 0),
    }
}

/// All losses with each of their settings.
const LOSSES: [Loss; 11] = [
    ("mse", |a, b| mse(a, b, Reduction::Mean)),
    ("l1", |a, b| l1(a, b, Reduction::Sum)),
    ("huber", |a, b| huber(a, b, 0.7, Reduction::Mean)),
    ("ranking", |a, b| {
        MultipleNegativesRanking::new().loss(a, b, None)
    }),
    ("ranking with negatives", |a, b| {
        MultipleNegativesRanking::new().loss(a, b, Some(&(turned(b)? * 0.5)?))
    }),
    ("ranking by dot products", |a, b| {
        let ranking = MultipleNegativesRanking::new().similarity(Similarity::Dot);
        ranking.scale(1.5).symmetric().loss(a, b, None)
    }),
    ("cosine similarity", |a, b| {
        cosine_similarity(a, b, &labels(a))
    }),
    ("cosent", |a, b| CoSent::new().loss(a, b, &labels(a))),
    ("triplet", |a, b| {
        Triplet::new().margin(1.0).loss(a, b, &turned(b)?)
    }),
    ("triplet by cosine", |a, b| {
        let triplet = Triplet::new().distance(Distance::Cosine);
        triplet.margin(0.4).loss(a, b, &turned(b)?)
    }),
    ("triplet by manhattan distance", |a, b| {
        let triplet = Triplet::new().distance(Distance::Manhattan);
        triplet.margin(1.0).loss(a, b, &turned(b)?)
    }),
];
