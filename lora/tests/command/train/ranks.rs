//! `mpirun lora train`: the processes do what one does.

use super::stopped::{RUN as DROPOUT, compared, signal, steps, wait_for};
use super::{Place, bard};
use crate::text;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

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

/// Starts processes, the arguments of `mpirun`.
fn mpirun<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new("mpirun");
    command.args(args);
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
}

/// What so many processes have for arguments.
fn args(place: &Place, ranks: &str, line: &str) -> Vec<String> {
    let mut args = vec!["-n".into(), ranks.into(), env!("CARGO_BIN_EXE_lora").into()];
    args.extend(place.line(line));
    args
}

fn done(place: &Place, ranks: &str, line: &str) -> Output {
    let output = mpirun(args(place, ranks, line)).output();
    output.expect("mpirun, of an MPI library, is on the PATH")
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
        let done = done(&place, ranks, &format!("{line} @{output}"));
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

/// One of them tells the reason, whether it is the reason of one or of all, and a run without a checkpoint
/// leaves nothing behind.
#[test]
fn an_error_ends_all_processes_with_its_reason() {
    let place = place();
    let run = format!("--model {} {RUN} --output @out", bard());
    let on_all = |old: &str, new: &str| args(&place, "2", &run.replace(old, new));
    let mut on_one = args(&place, "1", &run);
    on_one.push(":".into());
    on_one.extend(args(&place, "1", &run.replace(&bard(), "@absent")));
    let expected = [
        // Before anything is read.
        (
            on_all("--lr 1e-3", "--lr 0"),
            0,
            "--lr is 0: it must be above 0",
        ),
        // While the other process reads the model, or waits.
        (on_one, 1, "--model @absent is no directory"),
        // In a step, when the folder is made.
        (
            on_all("--lr 1e-3", "--lr 1e30 --clip 0 --warmup 0 --save-every 99"),
            0,
            "not finite",
        ),
    ];
    for (args, rank, reason) in expected {
        let start = Instant::now();
        let done = mpirun(args).output().unwrap();
        let err = text(&done.stderr).replace(&place.name(""), "@");
        assert_eq!(done.status.code(), Some(1), "{err}");
        let told: Vec<_> = err
            .lines()
            .filter(|line| line.contains("stops all: "))
            .collect();
        assert_eq!(told.len(), 1, "{err}");
        assert!(
            told[0].starts_with(&format!("rank {rank} of 2, on ")),
            "{err}"
        );
        assert!(told[0].contains(reason), "{err}");
        assert_eq!(err.matches(reason).count(), 1, "{err}");
        assert!(!place.path("out").exists(), "{err}");
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{:?}",
            start.elapsed()
        );
    }
}

/// One of them tells what the command line lacks.
#[test]
fn usage_is_told_once() {
    let done = done(&place(), "2", "--bogus");
    let err = text(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{err}");
    assert_eq!(
        err.matches("unexpected argument '--bogus'").count(),
        1,
        "{err}"
    );
}

/// `mpirun` passes SIGUSR1 on. Ctrl-C and `kill` leave the processes but a second, which is nothing for a test.
#[test]
fn a_signal_stops_all_processes_and_the_run_goes_on() {
    let place = Place::new();
    place.encoder();
    place.mails();
    let start = format!("{DROPOUT} --steps 100000 --save-every never --output @out");
    let mut command = mpirun(args(&place, "2", &start));
    let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let log = place.path("out/log.jsonl");
    assert!(wait_for(&mut child, &log, 3));
    signal(&child, "-USR1");
    let output = child.wait_with_output().unwrap();
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(128 + 10), "{err}");
    let steps = steps(&log).len();
    let told = format!(
        "a checkpoint holds step {steps}; to go on: lora train --resume --output {}\nstopped on request\n",
        place.name("out")
    );
    assert_eq!(err.matches(&told).count(), 1, "{err}");
    assert_eq!(err.matches("stopped on request").count(), 1, "{err}");

    let steps = steps + 5;
    for line in [
        format!("--resume --output @out --steps {steps}"),
        format!("{DROPOUT} --steps {steps} --save-every never --output @whole"),
    ] {
        let done = done(&place, "2", &line);
        assert!(done.status.success(), "{}", text(&done.stderr));
    }
    assert!(
        compared(&place, "out") == compared(&place, "whole"),
        "the runs differ"
    );
}
