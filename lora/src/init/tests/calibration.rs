//! What calibrations find in data.

use super::super::pca::IncrementalPca;
use super::*;
use crate::config::Mark;

/// Observes the fixture's batches, again and again, until every component has converged.
fn eva(fixture: &Fixture, name: &str, case: &Case) -> Result<Calibrated> {
    let mut calibration = Calibration::new(&case.config())?;
    for layer in &case.layers {
        let weight = fixture.get(name, &format!("{layer}.weight"));
        let rank = case.rank_pattern.get(layer).unwrap_or(&case.rank);
        calibration.add_layer(layer, weight.dims2()?, *rank, case.alpha)?;
    }
    for batch in (0..)
        .map(|i| i % fixture.each(name, "a.inputs").len())
        .take(100)
    {
        for layer in &case.layers {
            let inputs = fixture.get(name, &format!("{layer}.inputs.{batch}"));
            calibration.observe_inputs(layer, &inputs.unsqueeze(0)?)?;
        }
        if calibration.end_batch() {
            return calibration.finish();
        }
    }
    panic!("{name} did not converge");
}

#[test]
fn eva_shares_ranks_out_as_peft() -> Result<()> {
    let fixture = Fixture::read();
    for (name, case) in fixture.cases(|init| init == Init::Eva) {
        let calibrated = eva(&fixture, name, case)?;
        let config = calibrated.config(&case.config());
        for layer in &case.layers {
            let what = format!("{name} {layer}");
            let (rank, pattern) = (case.ranks[layer], format!("^{layer}"));
            if rank == 0 {
                assert!(!config.rank_pattern.contains_key(&pattern), "{what}");
                assert_eq!(config.exclude_modules, Some(Targets::Regex(layer.clone())));
                continue;
            }
            assert_eq!(config.rank_pattern[&pattern], rank, "{what}");
            let alpha = case.alphas.get(layer).unwrap();
            assert!(
                (config.alpha_pattern[&pattern] - alpha).abs() < 1e-12,
                "{what}"
            );
            let target = Target {
                path: layer,
                weight: fixture.get(name, &format!("{layer}.weight")),
                rank,
                scaling: config.scaling(rank, *alpha),
                blocks: None,
            };
            let start = start(&target, &config, Some(&calibrated), &mut rng())?;
            // Equal with their signs.
            let expected = fixture.get(name, &format!("{layer}.a"));
            assert_close(&what, &start.a, expected, 1e-3);
            assert_eq!(norm(&start.b), 0.0);
            assert!(start.base.is_none());
        }
    }
    Ok(())
}

#[test]
fn components_of_many_batches_are_those_of_all_rows() -> Result<()> {
    let rows = linalg::random(90, 6, &mut rng());
    let skewed = faer::Mat::from_fn(90, 6, |i, j| (rows[(i, j)] + 0.5) * (6 - j) as f64);
    let inputs = linalg::tensor(skewed.as_ref(), DType::F64, &Device::Cpu)?;
    let found = |sizes: &[usize]| -> Result<Calibrated> {
        let config = LoraConfig::new(3).init(Init::Eva);
        let mut calibration = Calibration::new(&config)?;
        calibration.add_layer("fc", (4, 6), 3, 3.0)?;
        let mut at = 0;
        for size in sizes {
            calibration.observe_inputs("fc", &inputs.narrow(0, at, *size)?)?;
            at += size;
        }
        calibration.finish()
    };
    let whole = found(&[90])?;
    let mean = inputs.mean_keepdim(0)?;
    let centred = linalg::matrix(&inputs.broadcast_sub(&mean)?)?;
    let svd = linalg::svd(centred.as_ref())?;
    // Batches of fewer rows than components wait.
    for parts in [whole.clone(), found(&[50, 40])?, found(&[2, 1, 30, 1, 56])?] {
        let components = parts.components("fc").unwrap();
        assert_eq!((components.rank, components.vectors.shape()), (3, (3, 6)));
        for i in 0..3 {
            let cosine = components.vectors.row(i) * svd.v.col(i);
            assert!((cosine.abs() - 1.0).abs() < 1e-9, "{cosine}");
        }
    }
    Ok(())
}

#[test]
fn all_components_explain_all_variance() -> Result<()> {
    let rows = linalg::random(80, 4, &mut rng());
    let drifting = faer::Mat::from_fn(80, 4, |i, j| rows[(i, j)] + (i * j) as f64 / 20.0);
    let values = linalg::to_values(drifting.as_ref());
    let ratios = |batch: usize| -> Result<Vec<f64>> {
        let mut pca = IncrementalPca::new(4, 4);
        for batch in values.chunks(batch * 4) {
            pca.fit(batch.to_vec(), 0.99)?;
        }
        Ok(pca.ratios().to_vec())
    };
    let whole = ratios(80)?;
    assert!((whole.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{whole:?}");
    for batch in [7, 33] {
        for (part, whole) in ratios(batch)?.iter().zip(&whole) {
            assert!((part - whole).abs() < 1e-12, "{part} {whole}");
        }
    }
    Ok(())
}

#[test]
fn calibrations_refuse_what_does_not_fit() -> Result<()> {
    assert!(Calibration::new(&LoraConfig::new(2)).is_err());
    let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let mut calibration = Calibration::new(&LoraConfig::new(2).init(Init::Corda))?;
    calibration.add_layer("a", (4, 3), 2, 2.0)?;
    calibration.add_layer("b", (4, 3), 2, 2.0)?;
    let error = |result: Result<()>| result.unwrap_err().to_string();
    let twice = calibration.add_layer("a", (4, 3), 2, 2.0);
    assert_eq!(error(twice), "a: is calibrated already");
    let unknown = calibration.observe_inputs("x", &zeros((2, 3))?);
    assert_eq!(error(unknown), "x: was not added to the calibration");
    let narrow = calibration.observe_inputs("a", &zeros((2, 4))?);
    assert_eq!(error(narrow), "a: inputs are 4 wide, the weight 3");
    let gradient = calibration.observe_gradient("a", &zeros((4, 3))?);
    assert!(error(gradient).contains("`corda` looks at inputs"));
    let infinite = (zeros((2, 3))? + f64::INFINITY)?;
    assert!(error(calibration.observe_inputs("a", &infinite)).starts_with("a: "));
    let missing = calibration.finish().unwrap_err().to_string();
    assert!(
        missing.contains("`a` was never") && missing.contains("`b` was never"),
        "{missing}"
    );

    let mut calibration = Calibration::new(&LoraConfig::new(2).init(Init::Eva))?;
    calibration.add_layer("a", (4, 9), 2, 2.0)?;
    calibration.observe_inputs("a", &zeros((3, 9))?)?;
    let few = calibration.finish().unwrap_err().to_string();
    assert!(few.contains("`a` saw 3 inputs, but needs 4"), "{few}");

    let mut calibration = Calibration::new(&LoraConfig::new(2).init(Init::LoraGa))?;
    calibration.add_layer("a", (4, 3), 2, 2.0)?;
    let shape = calibration.observe_gradient("a", &zeros((3, 4))?);
    assert_eq!(error(shape), "a: the gradient is [3, 4], the weight (4, 3)");
    Ok(())
}

#[test]
fn eva_excludes_beside_what_was_excluded() -> Result<()> {
    let fixture = Fixture::read();
    let name = "eva_none_left";
    let (_, case) = fixture.cases.iter().find(|(n, _)| n == name).unwrap();
    let calibrated = eva(&fixture, name, case)?;
    let excludes = |config: LoraConfig, path| -> Result<bool> {
        let config = calibrated.config(&config);
        let mut selection = crate::config::selection::Selection::new(&config)?;
        Ok(selection
            .choose(path, None, Some(Mark::rank()))?
            .target
            .is_none())
    };
    for config in [
        case.config().exclude_modules(["x.y", "z"]),
        case.config().exclude_modules(r"(.*\.)?x\.y|z"),
    ] {
        for path in ["c", "q.x.y", "x.y", "z"] {
            assert!(excludes(config.clone(), path)?, "{path}");
        }
        for path in ["a", "b", "q.c", "cc", "y", "xxy"] {
            assert!(!excludes(config.clone(), path)?, "{path}");
        }
    }
    Ok(())
}
