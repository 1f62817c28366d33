//! Choosing a token by its logits, with transformers' rules in transformers' order.

use super::Settings;
use crate::{Error, Result};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use std::collections::HashSet;

/// Chooses the tokens of one sequence.
pub(super) struct Sampler {
    settings: Settings,
    rng: ChaCha8Rng,
    /// The tokens of the sequence so far.
    seen: HashSet<u32>,
}

/// A token that may be drawn, and its logit.
type Candidate = (u32, f64);

impl Sampler {
    pub(super) fn new(settings: &Settings, seed: u64, prompt: &[u32]) -> Self {
        Self {
            settings: settings.clone(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            seen: prompt.iter().copied().collect(),
        }
    }

    /// The next token, for the logits of all tokens.
    pub(super) fn next(&mut self, logits: &[f32]) -> Result<u32> {
        let candidates = self.penalised(logits);
        let larger = |a: Candidate, b: Candidate| if b.1 > a.1 { b } else { a };
        let likeliest = candidates.iter().copied().reduce(larger);
        // A model may forbid a token by −∞, but not all.
        let any_nan = candidates.iter().any(|(_, logit)| logit.is_nan());
        let Some(likeliest) = likeliest.filter(|(_, logit)| logit.is_finite() && !any_nan) else {
            let problem = "the logits are not finite, or there are none: the weights or the adapter \
                           are damaged, or f16 overflows";
            return Err(Error::Generation(vec![problem.into()]));
        };
        let token = if self.settings.temperature == 0.0 {
            likeliest.0
        } else {
            let candidates = weights(&self.settings, candidates);
            draw(&candidates, self.rng.random())
        };
        self.seen.insert(token);
        Ok(token)
    }

    fn penalised(&self, logits: &[f32]) -> Vec<Candidate> {
        let penalty = self.settings.repetition_penalty;
        let candidates = (0..).zip(logits);
        let mut candidates: Vec<Candidate> = candidates
            .map(|(token, &logit)| (token, f64::from(logit)))
            .collect();
        // The seen tokens are few beside the vocabulary.
        for &token in &self.seen {
            if let Some((_, logit)) = candidates.get_mut(token as usize) {
                *logit = match *logit < 0.0 {
                    true => *logit * penalty,
                    false => *logit / penalty,
                };
            }
        }
        candidates
    }
}

/// The tokens that may be drawn, with weights in place of the logits: numbers in proportion to the
/// probabilities.
fn weights(settings: &Settings, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    for (_, logit) in &mut candidates {
        *logit /= settings.temperature;
    }
    if let Some(count) = settings.top_k.filter(|&count| count < candidates.len()) {
        let mut logits: Vec<f64> = candidates.iter().map(|&(_, logit)| logit).collect();
        let (_, &mut least, _) = logits.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
        // Of equal ones at the border, all stay.
        candidates.retain(|&(_, logit)| logit >= least);
    }
    let largest = |candidates: &[Candidate]| {
        let logits = candidates.iter().map(|&(_, logit)| logit);
        logits.fold(f64::NEG_INFINITY, f64::max)
    };
    let shift = largest(&candidates);
    for (_, logit) in &mut candidates {
        *logit = (*logit - shift).exp();
    }
    if let Some(probability) = settings.top_p.filter(|&p| p < 1.0) {
        candidates.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let enough = probability * sum(&candidates);
        let mut before = 0.0;
        candidates.retain(|&(_, weight)| {
            let stays = before < enough;
            before += weight;
            stays
        });
    }
    if let Some(share) = settings.min_p {
        let least = share * largest(&candidates);
        candidates.retain(|&(_, weight)| weight >= least);
    }
    candidates
}

fn sum(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|&(_, weight)| weight).sum()
}

/// The token at this place, in 0..1, of all weights in a row.
fn draw(candidates: &[Candidate], place: f64) -> u32 {
    let mut rest = place * sum(candidates);
    for &(token, weight) in candidates {
        if rest < weight {
            return token;
        }
        rest -= weight;
    }
    // Rounding can lead past the end.
    candidates.last().map_or(0, |&(token, _)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(settings: &Settings, logits: &[f32]) -> Vec<(u32, f64)> {
        let sampler = Sampler::new(settings, 0, &[1, 4]);
        let mut kept = weights(settings, sampler.penalised(logits));
        kept.sort_by_key(|&(token, _)| token);
        let all = sum(&kept);
        kept.iter()
            .map(|&(token, weight)| (token, weight / all))
            .collect()
    }

    const LOGITS: [f32; 6] = [1.0, 3.0, -0.5, 2.0, -1.0, 3.25];

    /// Tokens and probabilities by transformers' `TemperatureLogitsWarper`, `TopKLogitsWarper`,
    /// `TopPLogitsWarper`, `MinPLogitsWarper` and `RepetitionPenaltyLogitsProcessor`, after the
    /// sequence 1, 4.
    #[test]
    fn filters_are_those_of_transformers() {
        let plain = Settings::new().temperature(1.0);
        for (settings, expected) in [
            (plain.clone().temperature(0.5), FILTERS[0]),
            (plain.clone().top_k(3), FILTERS[1]),
            (plain.clone().top_k(1), FILTERS[2]),
            (plain.clone().top_p(0.8), FILTERS[3]),
            (plain.clone().top_p(0.3), FILTERS[4]),
            (plain.clone().min_p(0.1), FILTERS[5]),
            (plain.clone().repetition_penalty(1.5), FILTERS[6]),
            (
                plain
                    .temperature(1.7)
                    .top_k(4)
                    .top_p(0.9)
                    .min_p(0.2)
                    .repetition_penalty(1.2),
                FILTERS[7],
            ),
        ] {
            let kept = kept(&settings, &LOGITS);
            assert_eq!(kept.len(), expected.len(), "{settings:?}: {kept:?}");
            for (kept, expected) in kept.iter().zip(expected) {
                assert_eq!(kept.0, expected.0, "{settings:?}");
                assert!((kept.1 - expected.1).abs() < 1e-6, "{settings:?}: {kept:?}");
            }
        }
    }

    const FILTERS: [&[(u32, f64)]; 8] = [
        &[
            (0, 0.006532855),
            (1, 0.356681777),
            (2, 0.000325252),
            (3, 0.048271629),
            (4, 0.000119653),
            (5, 0.588068833),
        ],
        &[(1, 0.377087435), (3, 0.138722715), (5, 0.484189851)],
        &[(5, 1.000000000)],
        &[(1, 0.437823499), (5, 0.562176501)],
        &[(5, 1.000000000)],
        &[
            (0, 0.048555301),
            (1, 0.358777841),
            (3, 0.131986992),
            (5, 0.460679867),
        ],
        &[
            (0, 0.061616137),
            (1, 0.167490026),
            (2, 0.013748419),
            (3, 0.167490026),
            (4, 0.005057761),
            (5, 0.584597632),
        ],
        &[
            (0, 0.111432487),
            (1, 0.269285419),
            (3, 0.200668483),
            (5, 0.418613611),
        ],
    ];

    /// Tokens are drawn as often as their probabilities say.
    #[test]
    fn frequencies_follow_the_probabilities() {
        let settings = Settings::new().temperature(1.0);
        let mut sampler = Sampler::new(&settings, 3, &[]);
        let mut counts = [0u32; 3];
        for _ in 0..20_000 {
            counts[sampler.next(&[0.0, 1.0, -1.0]).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([0.244_73, 0.665_24, 0.090_03]) {
            let share = f64::from(count) / 20_000.0;
            assert!(
                (share - expected).abs() < 0.01,
                "{share} instead of {expected}"
            );
        }
    }

    /// Of equal logits at the border of the k largest, all stay, as in transformers.
    #[test]
    fn equal_logits_stay_together() {
        let settings = Settings::new().temperature(1.0).top_k(1);
        assert_eq!(kept(&settings, &[3.0, 1.0, 3.0]), [(0, 0.5), (2, 0.5)]);
    }

    #[test]
    fn the_likeliest_token_is_the_first_of_equal_ones() {
        let mut sampler = Sampler::new(&Settings::new(), 0, &[]);
        assert_eq!(sampler.next(&[1.0, 3.0, 3.0]).unwrap(), 1);
        assert_eq!(sampler.next(&[f32::NEG_INFINITY, -2.0]).unwrap(), 1);
        for logits in [
            [f32::NAN, 0.0],
            [0.0, f32::NAN],
            [f32::INFINITY, 0.0],
            [f32::NEG_INFINITY; 2],
        ] {
            let error = sampler.next(&logits).unwrap_err().to_string();
            assert!(error.contains("the logits are not finite"), "{error}");
        }
        assert!(sampler.next(&[]).is_err());
    }
}
