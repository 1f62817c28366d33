//! Combinations beside PEFT's, and by what defines them.

use crate::manage::combine::*;
use candle_core::{DType, safetensors};
use indexmap::IndexMap;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use serde::Deserialize;
use std::collections::HashMap;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/combine");
const LAYERS: [&str; 4] = ["linear", "conv", "conv1x1", "embed"];

#[derive(Deserialize)]
struct Cases {
    adapters: HashMap<String, Adapter>,
    cases: IndexMap<String, Case>,
}

#[derive(Deserialize)]
struct Adapter {
    r: usize,
    lora_alpha: f64,
}

#[derive(Deserialize)]
struct Case {
    adapters: Vec<String>,
    weights: Vec<f64>,
    combination_type: String,
    svd_rank: Option<usize>,
    density: Option<f64>,
    majority_sign_method: Option<String>,
}

impl Case {
    fn combination(&self) -> Combination {
        match self.combination_type.as_str() {
            "linear" => Combination::Linear,
            "cat" => Combination::Cat,
            "svd" => Combination::Svd,
            "ties" => Combination::Ties,
            "ties_svd" => Combination::TiesSvd,
            "magnitude_prune" => Combination::MagnitudePrune,
            "magnitude_prune_svd" => Combination::MagnitudePruneSvd,
            other => panic!("{other}"),
        }
    }

    fn options(&self) -> CombineOptions {
        CombineOptions {
            svd_rank: self.svd_rank,
            svd_clamp: None,
            density: self.density,
            majority_sign: match self.majority_sign_method.as_deref() {
                Some("frequency") => MajoritySign::Frequency,
                _ => MajoritySign::Total,
            },
            seed: None,
        }
    }
}

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(11)
}

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let matrix = linalg::random(1, shape.iter().product(), &mut rng);
    let tensor = linalg::tensor(matrix.as_ref(), DType::F64, &Device::Cpu).unwrap();
    tensor.reshape(shape).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    linalg::values(tensor).unwrap()
}

#[track_caller]
fn assert_near(what: &str, actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let largest = expected
        .iter()
        .fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
    for (actual, expected) in actual.iter().zip(expected) {
        let error = (actual - expected).abs() / largest;
        assert!(error <= tolerance, "{what}: {actual} for {expected}");
    }
}

/// The whole update of an adapter of a layer of this many groups.
fn update(a: &Tensor, b: &Tensor, groups: usize) -> Vec<f64> {
    let a = linalg::matrix(&a.flatten_from(1).unwrap()).unwrap();
    let b = linalg::matrix(&b.flatten_from(1).unwrap()).unwrap();
    linalg::to_values(Factors { a, b }.update(groups).as_ref())
}

/// Adapters of a layer: A and B, weight and scaling.
struct Several(Vec<(Tensor, Tensor, f64, f64)>);

impl Several {
    /// With ranks, weights and scalings of their own.
    fn new(a: &[usize], b: &[usize], groups: usize, ranks: &[usize]) -> Self {
        let each = ranks.iter().zip(0..).map(|(rank, seed)| {
            let a = [&[*rank], a].concat();
            let b = [&[b[0], rank / groups], &b[1..]].concat();
            let weight = if seed % 2 == 0 { 0.7 } else { -1.2 };
            (
                random(&a, seed),
                random(&b, 50 + seed),
                weight,
                0.5 + seed as f64,
            )
        });
        Self(each.collect())
    }

    fn linear(ranks: &[usize]) -> Self {
        Self::new(&[9], &[7], 1, ranks)
    }

    fn sources(&self) -> Vec<Source<'_>> {
        let each = self.0.iter();
        each.map(|(a, b, weight, scaling)| Source {
            a,
            b,
            weight: *weight,
            scaling: *scaling,
        })
        .collect()
    }

    fn combine(&self, combination: Combination, options: &CombineOptions) -> Result<Combined> {
        combine(&self.sources(), 1, combination, options, &mut rng())
    }

    /// Σ w·s·B·A
    fn sum(&self, groups: usize) -> Vec<f64> {
        let each = self.0.iter().map(|(a, b, weight, scaling)| {
            let update = update(a, b, groups).into_iter();
            update.map(|v| v * weight * scaling).collect::<Vec<_>>()
        });
        let sum = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(b).map(|(a, b)| a + b).collect();
        each.reduce(sum).unwrap()
    }
}

#[test]
fn combinations_are_those_of_peft() -> Result<()> {
    let text = std::fs::read_to_string(format!("{FOLDER}/cases.json")).unwrap();
    let Cases { adapters, cases } = serde_json::from_str(&text).unwrap();
    let tensors = safetensors::load(format!("{FOLDER}/combine.safetensors"), &Device::Cpu)?;
    for (name, case) in &cases {
        for layer in LAYERS {
            let what = format!("{name} {layer}");
            let get = |name: &str, matrix: &str| &tensors[&format!("{name}.{layer}.{matrix}")];
            let sources = case.adapters.iter().zip(&case.weights);
            let sources: Vec<_> = sources
                .map(|(adapter, weight)| Source {
                    a: get(adapter, "a"),
                    b: get(adapter, "b"),
                    weight: *weight,
                    scaling: adapters[adapter].lora_alpha / adapters[adapter].r as f64,
                })
                .collect();
            let options = case.options();
            let combined = combine(&sources, 1, case.combination(), &options, &mut rng())?;
            let (a, b) = (get(name, "a"), get(name, "b"));
            assert_eq!(
                (combined.a.dims(), combined.b.dims()),
                (a.dims(), b.dims()),
                "{what}"
            );
            assert_eq!(combined.rank, a.dim(0)?, "{what}");
            assert_eq!(combined.a.dtype(), DType::F32);
            if !case.combination().of(sources.len()).on_updates() {
                assert_near(&what, &values(&combined.a), &values(a), 1e-5);
                assert_near(&what, &values(&combined.b), &values(b), 1e-5);
            }
            let actual = update(&combined.a, &combined.b, 1);
            assert_near(&what, &actual, &update(a, b, 1), 1e-5);
        }
    }
    assert!(cases.len() > 12);
    Ok(())
}

#[test]
fn cat_and_a_large_svd_are_the_sum() -> Result<()> {
    for (a, b, groups, ranks) in [
        (&[9][..], &[7][..], 1, &[2, 3, 1][..]),
        (&[4, 3, 2], &[6, 1, 1], 1, &[2, 3]),
        (&[6, 3], &[8, 1], 2, &[2, 4]),
        (&[4, 3, 3], &[12, 1, 1], 3, &[3, 6, 3]),
    ] {
        let several = Several::new(a, b, groups, ranks);
        let what = format!("{a:?} {groups}");
        let sources = several.sources();
        let options = CombineOptions::default();
        let cat = combine(&sources, groups, Combination::Cat, &options, &mut rng())?;
        let total: usize = ranks.iter().sum();
        assert_eq!((cat.rank, cat.a.dim(0)?), (total, total), "{what}");
        assert_eq!(cat.b.dim(1)?, total / groups, "{what}");
        assert_near(
            &what,
            &update(&cat.a, &cat.b, groups),
            &several.sum(groups),
            1e-12,
        );

        let most = groups * (b[0] / groups).min(a.iter().product());
        let options = options.svd_rank(most);
        let svd = combine(&sources, groups, Combination::Svd, &options, &mut rng())?;
        assert_eq!(
            (svd.rank, svd.b.dims().len()),
            (most, b.len() + 1),
            "{what}"
        );
        assert_near(
            &what,
            &update(&svd.a, &svd.b, groups),
            &several.sum(groups),
            1e-12,
        );
    }
    Ok(())
}

#[test]
fn a_small_svd_leaves_the_least_singular_values() -> Result<()> {
    let several = Several::linear(&[3, 4]);
    let sum = linalg::from_values(&several.sum(1), 7, 9)?;
    let left: f64 = linalg::svd(sum.as_ref())?.s[4..]
        .iter()
        .map(|s| s * s)
        .sum();
    let svd = several.combine(Combination::Svd, &CombineOptions::default())?;
    assert_eq!(svd.rank, 4);
    let near = linalg::from_values(&update(&svd.a, &svd.b, 1), 7, 9)?;
    let error = (sum - near).norm_l2();
    assert!((error - left.sqrt()).abs() < 1e-10, "{error} {left}");
    assert!(error > 0.1);
    Ok(())
}

#[test]
fn one_adapter_is_scaled_exactly() -> Result<()> {
    for weight in [0.6, -0.6, 0.0] {
        let mut several = Several::linear(&[3]);
        several.0[0].2 = weight;
        for combination in [Combination::Svd, Combination::Ties, Combination::Cat] {
            let one = several.combine(combination, &CombineOptions::default())?;
            assert_eq!(one.rank, 3);
            assert_near("one", &update(&one.a, &one.b, 1), &several.sum(1), 1e-12);
        }
    }
    assert_eq!(Combination::Cat.of(1), Combination::Linear);
    assert_eq!(Combination::Cat.of(2), Combination::Cat);
    Ok(())
}

#[test]
fn a_density_of_one_prunes_nothing() -> Result<()> {
    let several = Several::linear(&[3, 3]);
    let full = CombineOptions::default().density(1.0);
    let combined = |combination| several.combine(combination, &full);
    for (pruned, plain) in [
        (Combination::DareLinear, Combination::Linear),
        (Combination::MagnitudePrune, Combination::Linear),
        (Combination::DareTies, Combination::Ties),
        (Combination::DareTiesSvd, Combination::TiesSvd),
    ] {
        let (pruned, plain) = (combined(pruned)?, combined(plain)?);
        assert_eq!(values(&pruned.a), values(&plain.a));
        assert_eq!(values(&pruned.b), values(&plain.b));
    }
    // These decompose the sum as a matrix, Svd decomposes the factors: the same matrix, in which a pair of
    // singular vectors may have other signs.
    let plain = combined(Combination::Svd)?;
    for pruned in [Combination::DareLinearSvd, Combination::MagnitudePruneSvd] {
        let pruned = combined(pruned)?;
        let product = |one: &Combined| update(&one.a, &one.b, 1);
        assert_near("update", &product(&pruned), &product(&plain), 1e-12);
        let sizes = |one: &Combined| -> Vec<f64> {
            let values = values(&one.a).into_iter().chain(values(&one.b));
            values.map(f64::abs).collect()
        };
        assert_near("a and b", &sizes(&pruned), &sizes(&plain), 1e-12);
    }
    Ok(())
}

#[test]
fn dare_keeps_a_share_and_makes_up_for_the_rest() -> Result<()> {
    // The second adapter has no weight: what is left is of the first.
    let mut several = Several::new(&[60], &[50], 1, &[10, 10]);
    several.0[1].2 = 0.0;
    let density = 0.3;
    let options = CombineOptions::default().density(density);
    let dare = several.combine(Combination::DareLinear, &options)?;
    let (a, _, weight, scaling) = &several.0[0];
    let size = (weight * scaling).sqrt();
    let mut kept = 0;
    for (value, original) in values(&dare.a).iter().zip(values(a)) {
        if *value != 0.0 {
            kept += 1;
            let expected = original * size / density;
            assert!((value - expected).abs() < 1e-12, "{value} {expected}");
        }
    }
    // 600 values: 180 are expected, with a standard deviation of 11.
    assert!((135..225).contains(&kept), "{kept}");

    // Ties: the mean of those that agree, so of one or two.
    several.0[1].2 = 0.7;
    several.0[1].3 = several.0[0].3;
    let ties = several.combine(Combination::DareTies, &options)?;
    let second = values(&several.0[1].0);
    let first = values(&several.0[0].0);
    for (value, (x, y)) in values(&ties.a).iter().zip(first.iter().zip(&second)) {
        let candidates = [0.0, *x, *y, (x + y) / 2.0].map(|v| v * size / density);
        let near = candidates.iter().any(|c| (value - c).abs() < 1e-12);
        assert!(near, "{value} {candidates:?}");
    }
    let again = several.combine(Combination::DareTies, &options)?;
    assert_eq!(values(&again.a), values(&ties.a));
    Ok(())
}

#[test]
fn rules_by_hand() {
    let mix = |combination, density, sign, tasks: &[(&[f64], f64)]| {
        let tasks = tasks
            .iter()
            .map(|(values, weight)| (values.to_vec(), *weight));
        mixed(
            tasks.collect(),
            Rule::new(combination, density, sign),
            &mut rng(),
        )
    };
    let (total, frequency) = (MajoritySign::Total, MajoritySign::Frequency);
    let tasks: [(&[f64], f64); 3] = [
        (&[5.0, 1.0, 0.0, -1.0], 1.0),
        (&[-1.0, 2.0, 0.0, 2.0], 2.0),
        (&[-2.0, 3.0, 0.0, -1.0], -0.5),
    ];
    // Signs: 2 > 0; all; none; 0, which counts as positive.
    let ties = mix(Combination::Ties, 1.0, total, &tasks);
    assert_eq!(ties, [5.0, (1.0 + 4.0 - 1.5) / 3.0, 0.0, 4.0]);
    let ties = mix(Combination::Ties, 1.0, frequency, &tasks);
    assert_eq!(
        ties,
        [(-2.0 + 1.0) / 2.0, 3.5 / 3.0, 0.0, (-1.0 + 0.5) / 2.0]
    );
    // ⌊0.6 · 4⌋ = 2 values of each.
    let pruned = mix(
        Combination::MagnitudePrune,
        0.6,
        total,
        &[(&[3.0, -4.0, 1.0, 2.0], 2.0)],
    );
    assert_eq!(pruned, [6.0, -8.0, 0.0, 0.0]);
    let nothing = mix(
        Combination::MagnitudePrune,
        0.2,
        total,
        &[(&[3.0, -4.0, 1.0, 2.0], 2.0)],
    );
    assert_eq!(nothing, [0.0; 4]);
    assert_eq!(rules::quantile(vec![3.0, 1.0, 2.0, 4.0], 0.5), 2.5);
    assert_eq!(rules::quantile(vec![3.0, 1.0, 2.0, 4.0], 1.0), 4.0);
    assert_eq!(rules::quantile(vec![3.0, 1.0], 0.25), 1.5);
}

#[test]
fn clamping_clips_at_the_quantile() -> Result<()> {
    let several = Several::linear(&[3, 4]);
    let options = CombineOptions::default();
    let plain = several.combine(Combination::Svd, &options)?;
    let all = [values(&plain.b), values(&plain.a)].concat();
    let most = rules::quantile(all, 0.9);
    assert!(most > 0.0);
    let clamped = several.combine(Combination::Svd, &options.clone().svd_clamp(0.9))?;
    let clip = |tensor: &Tensor| -> Vec<f64> {
        let values = values(tensor).into_iter();
        values.map(|v| v.clamp(-most, most)).collect()
    };
    assert_eq!(values(&clamped.a), clip(&plain.a));
    assert_eq!(values(&clamped.b), clip(&plain.b));
    assert_ne!(values(&clamped.b), values(&plain.b));
    let error = several.combine(Combination::Svd, &options.svd_clamp(0.01));
    assert!(error.unwrap_err().to_string().contains("above one half"));
    Ok(())
}

#[test]
fn what_does_not_combine_is_an_error() {
    let fails = |several: &Several, combination, options: CombineOptions, parts: &[&str]| {
        let error = several
            .combine(combination, &options)
            .unwrap_err()
            .to_string();
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    };
    let options = CombineOptions::default;
    let unequal = Several::linear(&[2, 3]);
    let equal = Several::linear(&[3, 3]);
    fails(
        &unequal,
        Combination::Linear,
        options(),
        &["one rank, these have [2, 3]"],
    );
    let both = ["one rank", "Ties needs a density"];
    fails(&unequal, Combination::Ties, options(), &both);
    for density in [0.0, -0.1, 1.1, f64::NAN] {
        let options = options().density(density);
        fails(&equal, Combination::DareLinearSvd, options, &["density is"]);
    }
    for rank in [0, 8] {
        let parts = ["at least 1 and at most 7", &format!("svd_rank is {rank}")];
        fails(&equal, Combination::Svd, options().svd_rank(rank), &parts);
    }
    fails(
        &equal,
        Combination::Svd,
        options().svd_clamp(1.5),
        &["svd_clamp is 1.5"],
    );
    let mut other = Several::linear(&[3, 3]);
    other.0[1].0 = random(&[3, 8], 1);
    other.0[0].2 = f64::NAN;
    fails(
        &other,
        Combination::Cat,
        options(),
        &["do not fit the same layer", "weight NaN"],
    );
    let mut wrong = Several::linear(&[3, 3]);
    wrong.0[1].1 = random(&[7, 2], 1);
    fails(
        &wrong,
        Combination::Cat,
        options(),
        &["do not fit a layer of"],
    );
    let mut infinite = Several::linear(&[3, 3]);
    infinite.0[1].1 = (random(&[7, 3], 1) / 0.0).unwrap();
    fails(
        &infinite,
        Combination::Cat,
        options(),
        &["21 of the (7, 3) values"],
    );
    fails(
        &Several(Vec::new()),
        Combination::Cat,
        options(),
        &["no adapter to combine"],
    );
    let grouped = Several::new(&[4, 3], &[6, 1], 2, &[2, 2]);
    let options = options().svd_rank(3);
    let error = combine(
        &grouped.sources(),
        2,
        Combination::Svd,
        &options,
        &mut rng(),
    );
    assert!(error.unwrap_err().to_string().contains("2 must divide it"));
}
