//! What came of the job.

use crate::results::{percent, row};
use crate::text::Tuned;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

/// The results; `{}` prints them as a table.
#[derive(Clone, Debug)]
pub struct Report {
    /// On held-out pairs, of the base model.
    pub before: Quality,
    /// Of the tuned one.
    pub after: Quality,
    /// The tuning.
    pub tuned: Tuned,
    /// The largest difference between a number of an embedding by the tuned model, and by a fresh one
    /// with the saved adapter.
    pub reloaded: f32,
    /// What was written.
    pub saved: Vec<PathBuf>,
}

/// How good embeddings are on held-out pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quality {
    /// Each pair is a match.
    Search(SearchQuality),
    /// The pairs have scores.
    Scores(ScoreQuality),
}

/// How well queries find their documents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SearchQuality {
    /// Queries.
    pub queries: usize,
    /// Documents among which each query finds its own.
    pub documents: usize,
    /// The share of a query's documents that is found first.
    pub recall_1: f64,
    /// The share among the first ten.
    pub recall_10: f64,
    /// The mean of 1 / the first right document's place, 0 behind the tenth.
    pub mrr: f64,
    /// NDCG of the first ten.
    pub ndcg: f64,
}

/// How well cosines follow the scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreQuality {
    /// Pairs.
    pub pairs: usize,
    /// Pearson's correlation.
    pub pearson: f64,
    /// Spearman's.
    pub spearman: f64,
}

impl Quality {
    /// Of what it is.
    fn of(&self) -> String {
        match self {
            Self::Search(search) => format!(
                "{} held-out queries among {} documents",
                search.queries, search.documents
            ),
            Self::Scores(scores) => format!("{} held-out pairs", scores.pairs),
        }
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let number = |value: f64| format!("{value:.3}");
        match self {
            Self::Search(search) => vec![
                ("recall@1", percent(search.recall_1)),
                ("recall@10", percent(search.recall_10)),
                ("MRR@10", number(search.mrr)),
                ("NDCG@10", number(search.ndcg)),
            ],
            Self::Scores(scores) => vec![
                ("Pearson", number(scores.pearson)),
                ("Spearman", number(scores.spearman)),
            ],
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        row(f, "", format_args!("{:<10}after", "before"))?;
        let rows = self.before.rows().into_iter().zip(self.after.rows());
        for (index, ((name, before), (_, after))) in rows.enumerate() {
            let of = match index {
                0 => format!("   {}", self.before.of()),
                _ => String::new(),
            };
            row(f, name, format_args!("{before:<10}{after}{of}"))?;
        }
        let reloaded = format!("embeddings differ by at most {:.1e}", self.reloaded);
        self.tuned.rows(f, reloaded, &self.saved)
    }
}
