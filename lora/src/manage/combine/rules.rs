//! The rules by which several lists of values become one.

use crate::manage::combine::{Combination, MajoritySign};
use rand::{Rng, RngExt};

/// Which values are kept, and how they are added.
#[derive(Clone, Copy, Debug)]
pub(in crate::manage::combine) struct Rule {
    prune: Option<Prune>,
    density: f64,
    /// If set, only values with the majority's sign count, and their mean is taken.
    majority: Option<MajoritySign>,
}

#[derive(Clone, Copy, Debug)]
enum Prune {
    Magnitude,
    /// Also divides the kept values by the density.
    Random,
}

impl Rule {
    pub(in crate::manage::combine) fn new(
        combination: Combination,
        density: f64,
        sign: MajoritySign,
    ) -> Self {
        use Combination::*;
        let (prune, majority) = match combination {
            Linear | Cat | Svd => (None, None),
            Ties | TiesSvd => (Some(Prune::Magnitude), Some(sign)),
            DareLinear | DareLinearSvd => (Some(Prune::Random), None),
            DareTies | DareTiesSvd => (Some(Prune::Random), Some(sign)),
            MagnitudePrune | MagnitudePruneSvd => (Some(Prune::Magnitude), None),
        };
        Self {
            // A density of 1 keeps everything.
            prune: prune.filter(|_| density < 1.0),
            density,
            majority,
        }
    }
}

/// Combines the values of several adapters, each with its weight.
pub(in crate::manage::combine) fn mixed(
    mut tasks: Vec<(Vec<f64>, f64)>,
    rule: Rule,
    rng: &mut impl Rng,
) -> Vec<f64> {
    for (values, _) in &mut tasks {
        match rule.prune {
            None => {}
            Some(Prune::Magnitude) => keep_largest(values, rule.density),
            Some(Prune::Random) => {
                for value in values {
                    let kept = rng.random::<f64>() < rule.density;
                    *value = if kept { *value / rule.density } else { 0.0 };
                }
            }
        }
    }
    let count = tasks.first().map_or(0, |(values, _)| values.len());
    let sum_at = |index: usize, keep: &dyn Fn(f64) -> bool| {
        let kept = tasks.iter().filter(|(values, _)| keep(values[index]));
        let sum = |(sum, count): (f64, usize), (values, weight): &(Vec<f64>, f64)| {
            (sum + values[index] * weight, count + 1)
        };
        kept.fold((0.0, 0), sum)
    };
    let value = |index: usize| {
        let Some(majority) = rule.majority else {
            return sum_at(index, &|_| true).0;
        };
        let votes = tasks.iter().map(|(values, _)| values[index]);
        let vote: f64 = match majority {
            MajoritySign::Total => votes.sum(),
            MajoritySign::Frequency => votes.filter(|v| *v != 0.0).map(f64::signum).sum(),
        };
        let (sum, count) = match vote >= 0.0 {
            true => sum_at(index, &|value| value > 0.0),
            false => sum_at(index, &|value| value < 0.0),
        };
        sum / count.max(1) as f64
    };
    (0..count).map(value).collect()
}

/// Sets all but the largest ⌊density · n⌋ values to zero.
fn keep_largest(values: &mut [f64], density: f64) {
    let kept = (density * values.len() as f64) as usize;
    let mut order: Vec<usize> = (0..values.len()).collect();
    if kept < order.len() {
        let larger = |a: &usize, b: &usize| values[*b].abs().total_cmp(&values[*a].abs());
        order.select_nth_unstable_by(kept, larger);
        for index in &order[kept..] {
            values[*index] = 0.0;
        }
    }
}

/// A quantile, interpolated between the two values next to it.
pub(in crate::manage::combine) fn quantile(mut values: Vec<f64>, quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else {
        return 0.0;
    };
    let at = quantile * last as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    values[below] + (values[above.min(last)] - values[below]) * at.fract()
}
