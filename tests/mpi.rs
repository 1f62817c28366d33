//! Training over MPI: the ranks are processes that `mpirun` starts on this machine.

#[allow(dead_code)]
mod ranks;

use lora::train::{Course, Ended, Every, Length, Parallel};
use ranks::{Case, assert_near, cases, plain, train, weights};
use serde_json::{Value, json};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Names the folder of a run to the processes that train, which are this test again.
const DIR: &str = "LORA_TESTS_MPI_DIR";
/// Names what they do.
const WORK: &str = "LORA_TESTS_MPI_WORK";
/// How long a run may take, on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the ranks may go on that another has left.
const SECONDS: Duration = Duration::from_secs(10);

/// The work of a rank, if this process is one.
#[test]
fn rank_process() {
    let Some(dir) = env::var_os(DIR).map(PathBuf::from) else {
        return;
    };
    let name = env::var(WORK).unwrap();
    Parallel::mpi(|parallel| -> lora::Result<()> {
        let rank = parallel.rank();
        let write = |what: &str, text: String| {
            fs::write(dir.join(format!("{what}-{rank}")), text).unwrap();
        };
        write("pid", std::process::id().to_string());
        let runs = match name.as_str() {
            "an error" if rank == 1 => return Err(lora::Error::Data(vec!["no such file".into()])),
            "a panic" if rank == 1 => panic!("rank 1 is lost"),
            "the cases" => cases(),
            steps => vec![long(steps.parse().unwrap_or(1_000_000))],
        };
        let mut found = Vec::new();
        for mut case in runs {
            // A folder that the other ranks do not have.
            case.output = (rank == 0).then(|| dir.join(case.name));
            case.resume = rank == 0;
            let before = parallel.traffic();
            let done = train(&case, parallel)?;
            found.push(json!({
                "ended": done.trained.ended == Ended::Finished,
                "weights": weights(&done.model),
                "losses": done.trained.losses,
                "evaluated": done.evaluated,
                "summed": parallel.traffic().summed - before.summed,
            }));
        }
        write(
            "rank",
            json!({"ranks": parallel.ranks(), "runs": found}).to_string(),
        );
        Ok(())
    })
    .unwrap();
}

/// A run whose steps do not depend on their number.
fn long(steps: usize) -> Case {
    let mut long = plain();
    long.name = "long";
    let options = long.options.course(Course::Constant).warmup(0.0);
    long.options = options.save(Every::Steps(5)).evaluate(Every::Never);
    long.options.length = Length::Steps(steps);
    long
}

/// Starts a run of so many ranks in this folder.
fn start(name: &str, dir: &Path, ranks: usize) -> Child {
    fs::create_dir_all(dir).unwrap();
    let ranks = ranks.to_string();
    Command::new("mpirun")
        .args(["-n", &ranks])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "rank_process", "--nocapture"])
        .envs([(DIR, dir.as_os_str()), (WORK, name.as_ref())])
        // Open MPI asks the administrator, and each rank for a core, which it then never leaves.
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("OMPI_MCA_hwloc_base_binding_policy", "none")
        .env("OMPI_MCA_mpi_yield_when_idle", "1")
        // A container may forbid a process to read another's memory.
        .env("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mpirun, of an MPI library, is on the PATH")
}

/// Waits for the end, and gives the exit code and what was written to the error output.
fn wait(mut child: Child, patience: Duration) -> Output {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > patience {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            panic!("the ranks go on after {patience:?}: {text}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// What each rank came to in each of its runs.
#[track_caller]
fn run(name: &str, dir: &Path, ranks: usize) -> Vec<Vec<Value>> {
    let output = wait(start(name, dir, ranks), PATIENCE);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}, {ranks} ranks: {text}");
    let read = |rank: usize| {
        let text = fs::read_to_string(dir.join(format!("rank-{rank}"))).unwrap();
        let found: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(found["ranks"], ranks);
        found["runs"].as_array().unwrap().clone()
    };
    (0..ranks).map(read).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    let numbers = value.as_array().unwrap().iter();
    numbers.map(|number| number.as_f64().unwrap()).collect()
}

fn is_rank() -> bool {
    env::var_os(DIR).is_some()
}

#[test]
fn ranks_take_the_steps_of_one() {
    if is_rank() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let one = |case: &Case| train(case, &Parallel::alone()).unwrap();
    let one: Vec<_> = cases().iter().map(one).collect();
    for ranks in [1, 2, 4] {
        let all = run("the cases", &dir.path().join(ranks.to_string()), ranks);
        for (rank, runs) in all.iter().enumerate() {
            assert_eq!(runs.len(), one.len());
            for (index, (found, one)) in runs.iter().zip(&one).enumerate() {
                let what = format!("{}, {rank} of {ranks} ranks", cases()[index].name);
                let expected = weights(&one.model);
                assert_near(&what, &numbers(&found["weights"]), &expected, 1e-6);
                assert_near(&what, &numbers(&found["losses"]), &one.trained.losses, 1e-6);
                assert_eq!(found["weights"], all[0][index]["weights"], "{what}");
                let evaluated = if rank == 0 { one.evaluated } else { 0 };
                assert_eq!(found["evaluated"], evaluated, "{what}");
                // A rank alone sums nothing, and its numbers are those of a program without MPI.
                let bytes = 10 * 4 * (expected.len() + 7);
                assert_eq!(
                    found["summed"],
                    if ranks == 1 { 0 } else { bytes },
                    "{what}"
                );
                if ranks == 1 {
                    assert_eq!(numbers(&found["weights"]), expected, "{what}");
                }
            }
        }
    }
}

/// A rank is killed: the others end within seconds, and the run goes on from the last checkpoint, on any
/// number of ranks.
#[test]
fn a_lost_rank_stops_all_and_the_run_goes_on() {
    if is_rank() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (lost, then) in [(1, 1), (0, 4)] {
        let what = format!("{lost} is lost, then {then} ranks");
        let dir = dir.path().join(&what);
        // So many steps that the run is not over by itself.
        let child = start("1000000", &dir, 2);
        let log = || fs::read_to_string(dir.join("long/log.jsonl")).unwrap_or_default();
        let began = Instant::now();
        while log().lines().count() < 12 {
            assert!(began.elapsed() < PATIENCE, "no step in {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        let pid = fs::read_to_string(dir.join(format!("pid-{lost}"))).unwrap();
        let killed = Command::new("kill").args(["-9", &pid]).status().unwrap();
        assert!(killed.success());
        let output = wait(child, SECONDS);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && text.contains("signal 9"),
            "{text}"
        );

        let steps = log().lines().count() / 5 * 5 + 10;
        let whole = train(&long(steps), &Parallel::alone()).unwrap();
        for runs in run(&steps.to_string(), &dir, then) {
            assert_eq!(runs[0]["ended"], true);
            // More steps than ten carry the rounding of the sums further.
            let found = numbers(&runs[0]["weights"]);
            assert_near(&what, &found, &weights(&whole.model), 1e-4);
        }
        let files = fs::read_dir(dir.join("long/checkpoints")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "best.safetensors").collect();
        names.sort();
        let last = [steps - 5, steps].map(|step| format!("step-{step:08}.safetensors"));
        assert_eq!(names, last, "whole, and none half written");
    }
}

/// A rank that fails says why, and ends all.
#[test]
fn an_error_of_a_rank_ends_all_with_its_reason() {
    if is_rank() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let expected = [
        ("an error", "stops all: the data: no such file\n"),
        ("a panic", "stops all: it panicked: rank 1 is lost\n"),
    ];
    for (name, reason) in expected {
        let output = wait(start(name, &dir.path().join(name), 2), SECONDS);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(text.matches("rank 1 of 2, on ").count(), 1, "{text}");
        assert_eq!(text.matches("stops all").count(), 1, "{text}");
        assert!(text.contains(reason), "{text}");
    }
}
