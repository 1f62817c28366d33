//! Compares initial values with PEFT's, and with their definitions.

mod calibration;
mod settings;

use super::calibration::{Calibrated, Calibration};
use super::original::convert;
use super::start::{Start, Target, start};
use super::*;
use crate::config::{
    CordaConfig, CordaMethod, EvaConfig, Init, LoftqConfig, LoraGaConfig, LoraGaDirection,
    LoraGaScale,
};
use crate::linalg;
use crate::{LoraConfig, Result, Targets};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor, safetensors};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use serde::Deserialize;
use std::collections::HashMap;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/init");

#[derive(Deserialize)]
struct Case {
    init: Init,
    rank: usize,
    alpha: f64,
    #[serde(default)]
    options: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    layers: Vec<String>,
    #[serde(default)]
    rank_pattern: HashMap<String, usize>,
    #[serde(default)]
    ranks: HashMap<String, usize>,
    #[serde(default)]
    alphas: HashMap<String, f64>,
}

impl Case {
    fn config(&self) -> LoraConfig {
        let key = match self.init {
            Init::Eva => "lora_eva_config",
            Init::Corda => "lora_corda_config",
            _ => "lora_ga_config",
        };
        let mut json = serde_json::Map::new();
        json.insert(key.into(), self.options.clone().into());
        let config: LoraConfig = serde_json::from_value(json.into()).unwrap();
        LoraConfig {
            rank: self.rank,
            alpha: self.alpha,
            init: self.init,
            ..config
        }
    }

    fn scaling(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}

struct Fixture {
    cases: Vec<(String, Case)>,
    tensors: HashMap<String, Tensor>,
}

impl Fixture {
    fn read() -> Self {
        let cases = std::fs::read_to_string(format!("{FOLDER}/cases.json")).unwrap();
        let cases: indexmap::IndexMap<String, Case> = serde_json::from_str(&cases).unwrap();
        let tensors = safetensors::load(format!("{FOLDER}/init.safetensors"), &Device::Cpu);
        Self {
            cases: cases.into_iter().collect(),
            tensors: tensors.unwrap(),
        }
    }

    fn cases(&self, init: impl Fn(Init) -> bool) -> Vec<&(String, Case)> {
        let cases: Vec<_> = self.cases.iter().filter(|(_, c)| init(c.init)).collect();
        assert!(cases.len() > 1);
        cases
    }

    fn get(&self, case: &str, name: &str) -> &Tensor {
        &self.tensors[&format!("{case}.{name}")]
    }

    /// `name.0`, `name.1`, ..
    fn each(&self, case: &str, name: &str) -> Vec<&Tensor> {
        let nth = |i| self.tensors.get(&format!("{case}.{name}.{i}"));
        (0..).map_while(nth).collect()
    }
}

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(3)
}

fn error(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.dims(), expected.dims());
    let (actual, expected) = (
        linalg::values(actual).unwrap(),
        linalg::values(expected).unwrap(),
    );
    let largest = expected
        .iter()
        .fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let differences = actual.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m }) / largest
}

#[track_caller]
fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    let error = error(actual, expected);
    assert!(error <= tolerance, "{what}: relative error {error:e}");
}

fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F64).unwrap()
}

/// B·A in f64.
fn update(a: &Tensor, b: &Tensor) -> Tensor {
    wide(b).matmul(&wide(a)).unwrap()
}

/// base + s·B·A in f64.
fn restored(start: &Start, scaling: f64) -> Tensor {
    let update = (update(&start.a, &start.b) * scaling).unwrap();
    (wide(start.base.as_ref().unwrap()) + update).unwrap()
}

fn norm(tensor: &Tensor) -> f64 {
    let values = linalg::values(tensor).unwrap();
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Rows of the first, with the signs of the second's.
fn with_signs(actual: &Tensor, expected: &Tensor) -> Tensor {
    let signs = (actual * expected).unwrap().sum_keepdim(1).unwrap();
    let signs = (signs.ge(0f64).unwrap().to_dtype(DType::F32).unwrap() * 2.0).unwrap();
    actual.broadcast_mul(&(signs - 1.0).unwrap()).unwrap()
}

fn weight(out: usize, inputs: usize, dtype: DType) -> Tensor {
    let weight = linalg::random(out, inputs, &mut rng());
    linalg::tensor(weight.as_ref(), dtype, &Device::Cpu).unwrap()
}

fn begin(weight: &Tensor, rank: usize, scaling: f64, config: &LoraConfig) -> Result<Start> {
    let target = Target {
        path: "model.fc",
        weight,
        rank,
        scaling,
        blocks: None,
    };
    start(&target, config, None, &mut rng())
}

fn calibrated(fixture: &Fixture, name: &str, case: &Case) -> Result<Calibrated> {
    let mut calibration = Calibration::new(&case.config())?;
    let shape = fixture.get(name, "weight").dims2()?;
    calibration.add_layer("model.fc", shape, case.rank, case.alpha)?;
    for inputs in fixture.each(name, "inputs") {
        calibration.observe_inputs("model.fc", inputs)?;
        assert!(!calibration.end_batch());
    }
    for gradient in fixture.each(name, "gradient") {
        calibration.observe_gradient("model.fc", gradient)?;
    }
    calibration.finish()
}

fn of_case(fixture: &Fixture, name: &str, case: &Case) -> Result<Start> {
    let calibrated = match case.init.needs_inputs() || case.init.needs_gradients() {
        true => Some(calibrated(fixture, name, case)?),
        false => None,
    };
    let target = Target {
        path: "model.fc",
        weight: fixture.get(name, "weight"),
        rank: case.rank,
        scaling: case.scaling(),
        blocks: None,
    };
    start(&target, &case.config(), calibrated.as_ref(), &mut rng())
}

#[test]
fn what_the_base_loses_is_what_peft_takes() -> Result<()> {
    let fixture = Fixture::read();
    let taken = |init| matches!(init, Init::Pissa | Init::Olora | Init::Corda);
    for (name, case) in fixture.cases(taken) {
        let start = of_case(&fixture, name, case)?;
        let (a, b) = (fixture.get(name, "a"), fixture.get(name, "b"));
        assert_eq!((start.a.dims(), start.b.dims()), (a.dims(), b.dims()));
        assert_close(name, &update(&start.a, &start.b), &update(a, b), 1e-5);
        assert_close(
            name,
            start.base.as_ref().unwrap(),
            fixture.get(name, "base"),
            1e-5,
        );
        let weight = wide(fixture.get(name, "weight"));
        assert_close(name, &restored(&start, case.scaling()), &weight, 1e-6);
        assert!(!start.frozen_b);
        // Each vector of a pair has PEFT's size, not only the product of both.
        let signed = with_signs(&start.a, a);
        assert_close(name, &signed, a, 2e-4);
    }
    Ok(())
}

#[test]
fn the_randomised_start_finds_the_same_values() -> Result<()> {
    let fixture = Fixture::read();
    for (name, case) in fixture.cases(|init| init == Init::Pissa) {
        let weight = fixture.get(name, "weight");
        let config = LoraConfig::new(case.rank).init(Init::PissaNiter(30));
        let start = begin(weight, case.rank, case.scaling(), &config)?;
        assert_close(
            name,
            start.base.as_ref().unwrap(),
            fixture.get(name, "base"),
            1e-5,
        );
        // A single step comes near, but does not give the same values.
        let config = config.init(Init::PissaNiter(0));
        let start = begin(weight, case.rank, case.scaling(), &config)?;
        let off = error(start.base.as_ref().unwrap(), fixture.get(name, "base"));
        assert!(off > 1e-4, "{name}: {off:e}");
        assert_close(name, &restored(&start, case.scaling()), &wide(weight), 1e-6);
    }
    Ok(())
}

#[test]
fn mica_takes_the_least_vectors_and_freezes_b() -> Result<()> {
    let fixture = Fixture::read();
    for (name, case) in fixture.cases(|init| init == Init::Mica) {
        let start = of_case(&fixture, name, case)?;
        let b = fixture.get(name, "b");
        let signed = with_signs(&start.b.t()?, &b.t()?);
        assert_close(name, &signed, &b.t()?, 1e-4);
        assert_eq!(norm(&start.a), 0.0);
        assert!(start.base.is_none() && start.frozen_b, "{name}");
    }
    Ok(())
}

#[test]
fn lora_ga_follows_each_direction_and_scale() -> Result<()> {
    let fixture = Fixture::read();
    for (name, case) in fixture.cases(|init| init == Init::LoraGa) {
        let start = of_case(&fixture, name, case)?;
        let weight = wide(fixture.get(name, "weight"));
        assert_close(name, &restored(&start, case.scaling()), &weight, 1e-6);
        if name.contains("random") {
            continue;
        }
        let (a, b) = (fixture.get(name, "a"), fixture.get(name, "b"));
        assert_close(name, &with_signs(&start.a, a), a, 1e-4);
        assert_close(name, &with_signs(&start.b.t()?, &b.t()?), &b.t()?, 1e-4);
    }
    Ok(())
}

#[test]
fn lora_ga_at_random_keeps_pairs_of_the_first_vectors() -> Result<()> {
    let fixture = Fixture::read();
    let name = "lora_ga_random_gd_scale";
    let (_, case) = fixture.cases.iter().find(|(n, _)| n == name).unwrap();
    let start = of_case(&fixture, name, case)?;
    let gradients = fixture.each(name, "gradient");
    let mean = ((wide(gradients[0]) + wide(gradients[1]))? / 2.0)?;
    let svd = linalg::svd(linalg::matrix(&mean)?.as_ref())?;
    // B·A·s² is a sum of r of the first 2r components: its singular values are among theirs.
    let scaled = (update(&start.a, &start.b) * case.scaling().powi(2))?;
    let found = linalg::svd(linalg::matrix(&scaled)?.as_ref())?.s;
    for value in &found[..case.rank] {
        let first = &svd.s[..2 * case.rank];
        assert!(
            first.iter().any(|s| (s - value).abs() < 1e-4 * s),
            "{value}"
        );
    }
    assert!(found[case.rank] < 1e-4 * found[0]);
    Ok(())
}

#[test]
fn orthogonal_starts_change_nothing() -> Result<()> {
    let weight = weight(10, 7, DType::F64);
    let config = LoraConfig::new(6).init(Init::Orthogonal);
    let start = begin(&weight, 6, 2.0, &config)?;
    assert_eq!(
        (start.a.dims(), start.b.dims()),
        (&[6, 7][..], &[10, 6][..])
    );
    assert!(norm(&update(&start.a, &start.b)) < 1e-14);
    // Half the rank each, of N(0, 1/100) along the rows of an orthogonal matrix.
    let rms = |t: &Tensor| norm(t) / (t.elem_count() as f64).sqrt();
    assert!(
        (rms(&start.a) - 0.1 / 2f64.sqrt()).abs() < 0.025,
        "{}",
        rms(&start.a)
    );
    assert!(
        (rms(&start.b) - 0.1 / 2f64.sqrt()).abs() < 0.025,
        "{}",
        rms(&start.b)
    );
    assert!(start.base.is_none() && !start.frozen_b);
    let error = begin(&weight, 5, 2.0, &config).unwrap_err().to_string();
    assert_eq!(
        error,
        "model.fc: rank 5 is odd: `orthogonal` needs an even one"
    );
    Ok(())
}

#[test]
fn loftq_leaves_the_rest_of_the_best_update() -> Result<()> {
    let weight = weight(24, 64, DType::F32);
    let (rank, scaling) = (5, 2.0);
    let left = |iterations| -> Result<f64> {
        let settings = LoftqConfig::default().iterations(iterations);
        let config = LoraConfig::new(rank)
            .init(Init::Loftq)
            .loftq_config(settings);
        let start = begin(&weight, rank, scaling, &config)?;
        let base = start.base.as_ref().unwrap();
        // The rest is the part of the quantisation's error that r singular values do not reach.
        let missing = linalg::matrix(&(wide(&weight) - wide(base))?)?;
        let least = linalg::svd(missing.as_ref())?.s[rank..]
            .iter()
            .map(|s| s * s)
            .sum::<f64>();
        let left = norm(&(wide(&weight) - restored(&start, scaling))?);
        assert!((left - least.sqrt()).abs() < 1e-5 * left, "{left} {least}");
        if iterations == 1 {
            let quantised = QTensor::quantize(&weight, GgmlDType::Q4_0)?;
            let quantised = quantised.dequantize(&Device::Cpu)?;
            assert_close("base", base, &quantised, 0.0);
            assert!(
                left < 0.8 * missing.norm_l2(),
                "{left} {}",
                missing.norm_l2()
            );
        }
        Ok(left)
    };
    let (one, five) = (left(1)?, left(5)?);
    assert!(five < one, "{one} {five}");
    // The scaling changes A and B, but not s·B·A.
    let settings = LoftqConfig::default().iterations(3);
    let config = LoraConfig::new(rank)
        .init(Init::Loftq)
        .loftq_config(settings);
    let plain = begin(&weight, rank, 1.0, &config)?;
    let scaled = begin(&weight, rank, 4.0, &config)?;
    assert_close("base", &scaled.base.unwrap(), &plain.base.unwrap(), 0.0);
    assert_close("A", &(scaled.a * 2.0)?, &plain.a, 0.0);

    let config = LoraConfig::new(2).init(Init::Loftq);
    let settings = LoftqConfig::default().quantiser(GgmlDType::Q4K);
    let error = begin(&weight, 2, 1.0, &config.loftq_config(settings)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("256 inputs at a time, the layer has 64"),
        "{error}"
    );
    Ok(())
}

#[test]
fn half_precision_is_rounded_once() -> Result<()> {
    for (dtype, tolerance) in [(DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)] {
        let weight = weight(9, 12, dtype);
        for init in [Init::Pissa, Init::Olora] {
            let start = begin(&weight, 4, 0.5, &LoraConfig::new(4).init(init))?;
            assert_eq!(start.base.as_ref().unwrap().dtype(), dtype);
            assert_eq!((start.a.dtype(), start.b.dtype()), (DType::F32, DType::F32));
            assert_close(
                "restored",
                &restored(&start, 0.5),
                &wide(&weight),
                tolerance,
            );
        }
    }
    Ok(())
}

#[test]
fn ranks_beyond_the_weight_are_errors() -> Result<()> {
    let weight = weight(5, 8, DType::F32);
    for (init, most) in [
        (Init::Pissa, 5),
        (Init::PissaNiter(2), 5),
        (Init::Olora, 5),
        (Init::Mica, 5),
        (Init::Corda, 5),
        (Init::LoraGa, 2),
    ] {
        let error = begin(&weight, most + 1, 1.0, &LoraConfig::new(6).init(init));
        let error = error.unwrap_err().to_string();
        let expected = format!("model.fc: rank {} is too large for `{init}`", most + 1);
        assert!(error.starts_with(&expected), "{error}");
        assert!(
            error.ends_with(&format!("(5, 8) gives at most {most}")),
            "{error}"
        );
    }
    Ok(())
}

#[test]
fn what_cannot_start_is_an_error() -> Result<()> {
    let good = weight(5, 8, DType::F32);
    let config = |init| LoraConfig::new(2).init(init);
    let fails = |weight: &Tensor, scaling, init, part: &str| {
        let error = begin(weight, 2, scaling, &config(init)).unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with("model.fc: ") && error.contains(part),
            "{error}"
        );
    };
    fails(&good, -1.0, Init::Pissa, "alpha above 0: s is -1");
    fails(&good, 0.0, Init::PissaNiter(1), "alpha above 0");
    fails(&good, 1.0, Init::Gaussian, "not computed");
    for init in [Init::Eva, Init::Corda, Init::LoraGa] {
        fails(&good, 1.0, init, "needs a calibration");
    }
    let bad = (&good / 0.0)?;
    for init in [Init::Pissa, Init::Olora, Init::Mica, Init::Loftq] {
        fails(&bad, 1.0, init, "40 of the (5, 8) values are not finite");
    }
    Ok(())
}

#[test]
fn only_drawn_values_are_for_every_layer() -> Result<()> {
    let weight = weight(5, 8, DType::F32);
    let draw = |init, embedding| {
        let layer = AdapterInit {
            a: (2, 5).into(),
            b: (8, 2).into(),
            embedding,
            weight: &weight,
        };
        layer.draw(&LoraConfig::new(2).init(init), "model.embed", 2)
    };
    for embedding in [false, true] {
        let error = draw(Init::PissaNiter(4), embedding)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("model.embed: "), "{error}");
        assert!(
            error.contains("`pissa_niter_4` is for linear layers"),
            "{error}"
        );
        let (a, b) = draw(Init::Random, embedding)?;
        assert!(norm(&a) > 0.0 && norm(&b) > 0.0);
        let (a, b) = draw(Init::Gaussian, embedding)?;
        assert_eq!((norm(&a) > 0.0, norm(&b) > 0.0), (!embedding, embedding));
    }
    Ok(())
}
