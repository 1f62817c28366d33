//! A training process that is killed at any moment, and started again, ends with the same weights.

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::Linear;
use lora::data::BatchOptions;
use lora::optim::LoraPlus;
use lora::train::{Every, Examples, Loss, Metrics, TrainOptions, Trainer};
use lora::{LoraConfig, LoraModel};
use lora_tests::fixed;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Names the output to the process that trains, which is this test again.
const DIR: &str = "LORA_TESTS_STOPPED_DIR";
/// How many processes are killed.
const KILLS: usize = 12;
/// The steps of the run.
const STEPS: usize = 390;
/// How long a process may take to its next line, on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, LoraModel)]
struct Net {
    fc1: Linear,
    fc2: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc1)?.tanh()?.apply(&self.fc2)
    }
}

/// Trains with dropout, shuffling, accumulation and evaluation, or goes on.
fn train(dir: &Path) {
    let net = Net {
        fc1: Linear::new(fixed((16, 8), DType::F32, 1), None),
        fc2: Linear::new(fixed((4, 16), DType::F32, 2), None),
    };
    let config = LoraConfig::new(4).target_modules(["fc1", "fc2"]);
    let mut model = net.to_lora(&config.dropout(0.2).seed(0)).unwrap();
    let (xs, ys) = (fixed((37, 8), DType::F32, 3), fixed((37, 4), DType::F32, 4));
    let mut source = Examples::new([1; 37], &BatchOptions::new(3).seed(1), |numbers| {
        let numbers = numbers.iter().map(|&number| number as u32);
        let numbers = Tensor::from_iter(numbers, &Device::Cpu)?;
        Ok((xs.index_select(&numbers, 0)?, ys.index_select(&numbers, 0)?))
    })
    .unwrap();
    let options = TrainOptions::steps(STEPS)
        .accumulate(2)
        .warmup(0.1)
        .clip(1.0);
    let options = options.save(Every::Steps(2)).evaluate(Every::Steps(3));
    let trained = Trainer::new(options)
        .output(dir)
        .resume(true)
        .evaluate(|model: &LoraNet| {
            let loss = (model.forward(&xs)? - &ys)?.sqr()?.mean_all()?;
            Ok(Metrics::from([("loss", loss.to_scalar::<f32>()?.into())]))
        })
        .run(
            &mut model,
            &mut source,
            |model| LoraPlus::new(1e-3, 4.0).adamw(model),
            |model, (xs, ys)| {
                let loss = (model.forward(xs)? - ys)?.sqr()?.mean_all()?;
                Ok(Loss::over_examples(loss, xs.dim(0)?))
            },
        );
    assert_eq!(trained.unwrap().steps, STEPS);
}

/// Trains, if it is the process that is killed.
#[test]
fn training_process() {
    if let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) {
        train(&dir);
    }
}

fn start(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "training_process"])
        .env(DIR, dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn log(dir: &Path) -> String {
    fs::read_to_string(dir.join("log.jsonl")).unwrap_or_default()
}

/// The tensors of the last checkpoint, and of the best.
fn tensors(dir: &Path) -> Vec<HashMap<String, Vec<u8>>> {
    let last = format!("step-{STEPS:08}.safetensors");
    let files = ["best.safetensors", &last].map(|name| dir.join("checkpoints").join(name));
    let read = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.iter();
        tensors
            .map(|(name, tensor)| (name.to_string(), tensor.data().to_vec()))
            .collect()
    };
    files.iter().map(read).collect()
}

/// The steps and evaluations of a log, with all but the time that they took.
fn steps(dir: &Path) -> Vec<serde_json::Value> {
    let line = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("seconds");
        line
    };
    log(dir).lines().map(line).collect()
}

#[test]
fn a_killed_run_ends_as_one_that_was_not() {
    if std::env::var_os(DIR).is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| dir.path().join(name));
    train(&whole);
    for round in 0..KILLS {
        let mut child = start(&killed);
        let began = Instant::now();
        // Further with each round, so that the moments lie over the whole run.
        let lines = (round + 1) * STEPS / (KILLS + 2);
        while log(&killed).lines().count() < lines {
            assert_eq!(child.try_wait().unwrap(), None, "the process has ended");
            assert!(began.elapsed() < PATIENCE, "no line in {PATIENCE:?}");
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(round as u64 * 7919 % 3001));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(start(&killed).wait().unwrap().success());
    assert!(tensors(&killed) == tensors(&whole), "other tensors");
    assert_eq!(steps(&killed), steps(&whole));
    // The last three of them, and none half written.
    let files = fs::read_dir(killed.join("checkpoints")).unwrap();
    assert_eq!(files.count(), 3);
}
