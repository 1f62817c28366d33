//! How well queries find their documents.

use candle_core::{DType, Result, Tensor, bail};

/// Where a search put the documents that answer its queries.
///
/// Every figure is a mean over the queries, from 0 to 1. They are those of sentence-transformers'
/// `InformationRetrievalEvaluator`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lora::metrics::Retrieval;
///
/// // Two queries, three documents. The first finds its document first, the second as second.
/// let scores = Tensor::new(&[[0.9f32, 0.1, 0.3], [0.8, 0.2, 0.5]], &Device::Cpu)?;
/// let found = Retrieval::of_scores(&scores, &[vec![0], vec![2]])?;
/// assert_eq!((found.hits(1)?, found.hits(2)?, found.mrr(10)?), (0.5, 1.0, 0.75));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retrieval {
    /// For each query the places of its documents among all, from 0, in rising order.
    places: Vec<Vec<usize>>,
}

impl Retrieval {
    /// Reads the places from scores (queries, documents), higher for what fits better, such as
    /// [`Similarity::matrix`](crate::losses::Similarity::matrix) gives, and the documents that answer
    /// each query. Documents with the same score come in their order.
    ///
    /// # Errors
    /// If the scores are no matrix or hold NaN, there are no queries, or a query has no document, one
    /// twice, or one that does not exist.
    pub fn of_scores(scores: &Tensor, relevant: &[Vec<usize>]) -> Result<Self> {
        let what = "retrieval";
        let (queries, documents) = match *scores.dims() {
            [queries, documents] if queries > 0 && documents > 0 => (queries, documents),
            _ => bail!(
                "{what}: the scores must be (queries, documents), neither of them 0, they are {:?}",
                scores.dims()
            ),
        };
        if relevant.len() != queries {
            bail!(
                "{what}: {queries} queries need as many lists of documents, there are {}",
                relevant.len()
            );
        }
        let rows = scores.detach().to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let mut places = Vec::with_capacity(queries);
        for (query, (row, relevant)) in rows.iter().zip(relevant).enumerate() {
            if row.iter().any(|score| score.is_nan()) {
                bail!("{what}: the scores of query {query} hold NaN");
            }
            let mut wanted = relevant.clone();
            wanted.sort_unstable();
            wanted.dedup();
            let last = wanted.last();
            if wanted.len() != relevant.len() || last.is_none_or(|&last| last >= documents) {
                bail!(
                    "{what}: query {query} needs documents below {documents}, at least one and none twice, \
                     it has {relevant:?}"
                );
            }
            let before = |document: usize| {
                let earlier = |(other, score): (usize, &f64)| {
                    *score > row[document] || (*score == row[document] && other < document)
                };
                row.iter().enumerate().filter(|&pair| earlier(pair)).count()
            };
            let mut found: Vec<usize> = wanted.into_iter().map(before).collect();
            found.sort_unstable();
            places.push(found);
        }
        Ok(Self { places })
    }

    /// The share of queries with at least one of their documents among the first `k`: `accuracy@k`.
    ///
    /// # Errors
    /// If `k` is 0.
    pub fn hits(&self, k: usize) -> Result<f64> {
        self.mean(k, |places| f64::from(u8::from(places[0] < k)))
    }

    /// The share of its documents that a query has among the first `k`.
    ///
    /// # Errors
    /// If `k` is 0.
    pub fn recall(&self, k: usize) -> Result<f64> {
        self.mean(k, |places| {
            among(places, k).count() as f64 / places.len() as f64
        })
    }

    /// The mean of 1 / rank of a query's first document, 0 if it is not among the first `k`: MRR@k.
    ///
    /// # Errors
    /// If `k` is 0.
    pub fn mrr(&self, k: usize) -> Result<f64> {
        self.mean(k, |places| {
            let first = among(places, k).next();
            first.map_or(0.0, |place| 1.0 / (place + 1) as f64)
        })
    }

    /// The discounted gain of a query's documents among the first `k`, as a share of the best order's:
    /// a document at rank r counts 1 / log₂(r + 1).
    ///
    /// # Errors
    /// If `k` is 0.
    pub fn ndcg(&self, k: usize) -> Result<f64> {
        let gain = |place: usize| 1.0 / ((place + 2) as f64).log2();
        self.mean(k, |places| {
            let best: f64 = (0..places.len().min(k)).map(gain).sum();
            among(places, k).map(gain).sum::<f64>() / best
        })
    }

    fn mean(&self, k: usize, of: impl Fn(&[usize]) -> f64) -> Result<f64> {
        if k == 0 {
            bail!("retrieval: k must be at least 1");
        }
        let sum: f64 = self.places.iter().map(|places| of(places)).sum();
        Ok(sum / self.places.len() as f64)
    }
}

fn among(places: &[usize], k: usize) -> impl Iterator<Item = usize> {
    places.iter().copied().take_while(move |&place| place < k)
}
