//! A process that is killed while it saves an adapter leaves one that loads.

use candle_core::{DType, Device, Tensor};
use candle_nn::Linear;
use lora::peft::AdapterConfig;
use lora::{LoraConfig, LoraModel, LoraModule};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Names the directory to the process that saves, which is this test again.
const DIR: &str = "LORA_TESTS_CRASH_DIR";
/// How many processes are killed for each of the two ways of replacing an adapter.
const KILLS: u32 = 150;
/// How long a process may take to its first save, on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, LoraModel)]
struct Net {
    fc: Linear,
}

fn base() -> Net {
    let weight = Tensor::zeros((16, 16), DType::F32, &Device::Cpu).unwrap();
    Net {
        fc: Linear::new(weight, None),
    }
}

/// An adapter of this rank, of which every value is that number.
fn adapter(rank: usize, value: f64) -> LoraNet {
    let config = LoraConfig::new(rank)
        .alpha(rank as f64)
        .target_modules(["fc"]);
    let model = base().to_lora(&config).unwrap();
    for var in model.trainable_vars() {
        let full = (var.as_tensor().ones_like().unwrap() * value).unwrap();
        var.set(&full).unwrap();
    }
    model
}

/// The ranks between which the saving process changes: one, or two with different configurations.
fn ranks(dir: &Path) -> [usize; 2] {
    match dir.ends_with("same") {
        true => [2, 2],
        false => [2, 3],
    }
}

/// Where the process that saves notes that a save begins, `(`, and that it is over, `)`.
fn journal(dir: &Path) -> PathBuf {
    dir.with_extension("journal")
}

/// Saves again and again, if it is the process that is killed.
#[test]
fn saving_process() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        return;
    };
    let [a, b] = ranks(&dir);
    let models = [adapter(a, 1.0), adapter(b, 2.0)];
    let mut journal = File::create(journal(&dir)).unwrap();
    // Not for ever, should the other process die first.
    let began = Instant::now();
    while began.elapsed() < 2 * PATIENCE {
        for model in &models {
            journal.write_all(b"(").unwrap();
            model.save_adapter(&dir).unwrap();
            journal.write_all(b")").unwrap();
        }
    }
}

fn start(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "saving_process", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Lets a process save, and kills it at some moment after its first save. Gives its journal.
fn killed(dir: &Path, moment: Duration) -> String {
    let mut child = start(dir);
    let saved = || fs::metadata(journal(dir)).is_ok_and(|journal| journal.len() >= 2);
    let began = Instant::now();
    while !saved() {
        let ended = child.try_wait().unwrap();
        assert_eq!(ended, None, "the process that saves has ended");
        assert!(began.elapsed() < PATIENCE, "no save in {PATIENCE:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(moment);
    child.kill().unwrap();
    child.wait().unwrap();
    let text = fs::read_to_string(journal(dir)).unwrap();
    fs::remove_file(journal(dir)).unwrap();
    text
}

/// Kills saving processes and loads what each of them left.
fn kill_often(dir: &Path) {
    let [a, b] = ranks(dir);
    adapter(a, 1.0).save_adapter(dir).unwrap();
    let mut inside = 0;
    for round in 0..KILLS {
        let text = killed(dir, Duration::from_micros(u64::from(round * 7919 % 3001)));
        assert!(text.starts_with("()"), "{text}");
        inside += u32::from(text.ends_with('('));
        let rank = AdapterConfig::read(dir).unwrap().r;
        let model = base().with_adapter(dir).unwrap();
        let values: Vec<f64> = model
            .named_params()
            .iter()
            .filter(|param| param.path.contains("lora_"))
            .flat_map(|param| {
                let tensor = param.tensor.to_dtype(DType::F64).unwrap();
                tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap()
            })
            .collect();
        assert_eq!(values.len(), 2 * 16 * rank);
        let value = values[0];
        assert!(values.iter().all(|v| *v == value), "a mixture");
        match a == b {
            true => assert!(value == 1.0 || value == 2.0),
            false => assert_eq!(value, if rank == a { 1.0 } else { 2.0 }),
        }
    }
    // The process does nothing but save, so that most kills cut a save off.
    assert!(
        inside > KILLS / 2,
        "{inside} of {KILLS} kills fell into a save"
    );
}

#[test]
fn weights_are_replaced_in_one_step() {
    if std::env::var_os(DIR).is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    kill_often(&dir.path().join("same"));
}

#[test]
fn a_configuration_and_its_weights_never_mix() {
    if std::env::var_os(DIR).is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    kill_often(&dir.path().join("other"));
}
