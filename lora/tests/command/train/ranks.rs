//! `mpirun lora train`: the processes do what one does.

use super::{Place, bard};
use crate::text;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::process::{Command, Output};

/// Six texts in batches of four: the last batch of an epoch has two.
const RUN: &str =
    "--data @texts.jsonl --max-length 24 --batch 4 --lr 1e-3 --epochs 2 --held-out 0.25 --json";

fn place() -> Place {
    let place = Place::new();
    let lines = [
        "Of Mans First Disobedience, and the Fruit",
        "Of that Forbidden Tree, whose mortal tast",
        "Brought Death into the World, and all our woe,",
        "With loss of Eden, till one greater Man",
        "Restore us, and regain the blissful Seat,",
        "Sing Heav'nly Muse, that on the secret top",
        "Of Oreb, or of Sinai, didst inspire",
        "That Shepherd, who first taught the chosen Seed,",
    ];
    place.jsonl(
        "texts.jsonl",
        lines.iter().map(|line| json!({"text": line})),
    );
    place
}

/// Runs so many processes.
fn mpirun(place: &Place, ranks: &str, line: &str) -> Output {
    let mut command = Command::new("mpirun");
    command.args(["-n", ranks, env!("CARGO_BIN_EXE_lora")]);
    let command = command.args(place.line(line));
    for (name, value) in [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ("OMPI_MCA_hwloc_base_binding_policy", "none"),
        ("OMPI_MCA_mpi_yield_when_idle", "1"),
        ("OMPI_MCA_btl_vader_single_copy_mechanism", "none"),
    ] {
        command.env(name, value);
    }
    command
        .output()
        .expect("mpirun, of an MPI library, is on the PATH")
}

fn adapter(place: &Place, output: &str) -> HashMap<String, Tensor> {
    let path = place.path(&format!("{output}/adapter_model.safetensors"));
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

#[test]
fn processes_make_the_adapter_of_one() {
    let place = place();
    let line = format!("--model {} {RUN} --output", bard());
    let one = place.train(&format!("{line} @one").replace(" --json", ""));
    for ranks in ["1", "3"] {
        let output = format!("ranks-{ranks}");
        let done = mpirun(&place, ranks, &format!("{line} @{output}"));
        let (out, err) = (text(&done.stdout), text(&done.stderr));
        assert!(done.status.success(), "{err}");
        // One of them speaks.
        assert_eq!(out.lines().count(), 1, "{out}");
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["steps"], one["steps"]);
        let (all, of_one) = (adapter(&place, &output), adapter(&place, "one"));
        assert_eq!(all.len(), of_one.len());
        for (name, expected) in of_one {
            let difference = (&all[&name] - expected).unwrap().abs().unwrap();
            let largest = difference.flatten_all().unwrap().max(0).unwrap();
            let largest: f64 = largest.to_dtype(DType::F64).unwrap().to_scalar().unwrap();
            let tolerance = if ranks == "1" { 0.0 } else { 1e-5 };
            assert!(largest <= tolerance, "{ranks} ranks, {name}: {largest:e}");
        }
    }
}

#[test]
fn an_error_ends_all_processes_with_its_reason() {
    let place = place();
    let line = RUN.replace("--lr 1e-3", "--lr 0");
    let line = format!("--model {} {line} --output @out", bard());
    let done = mpirun(&place, "2", &line);
    let err = text(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{err}");
    assert!(
        err.contains(" of 2 stops all: --lr is 0: it must be above 0"),
        "{err}"
    );
    assert!(fs::metadata(place.path("out")).is_err());
}
