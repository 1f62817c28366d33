//! A run that is stopped or killed, and goes on.

use super::Place;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A run whose numbers do not depend on its length.
pub const RUN: &str = "--model @encoder --data @mails.jsonl --batch 2 --lr 5e-3 --schedule constant --warmup 0 \
                   --dropout 0.2 --optimizer lora_plus --accumulate 2 --dora --eval-every 7 --seed 3";

fn start(place: &Place, line: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_lora"))
        .args(place.line(line))
        .env_remove("RAYON_NUM_THREADS")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The steps that a run's log tells.
pub fn steps(log: &Path) -> Vec<Value> {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    let lines = whole.map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line.get("loss").is_some()).collect()
}

/// Waits until the log tells of a step. False if the process has ended before.
pub fn wait_for(child: &mut Child, log: &Path, step: u64) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if steps(log).last().and_then(|line| line["step"].as_u64()) >= Some(step) {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        sleep(Duration::from_micros(300));
    }
    panic!("no step {step} within a minute");
}

/// What two runs must share: the adapter, and the log but for its times.
pub fn compared(place: &Place, output: &str) -> (Vec<u8>, Vec<Value>) {
    let adapter = fs::read(place.path(&format!("{output}/adapter_model.safetensors"))).unwrap();
    let mut lines = steps(&place.path(&format!("{output}/log.jsonl")));
    for line in &mut lines {
        line["seconds"].take();
    }
    (adapter, lines)
}

#[test]
fn killed_at_twenty_moments_it_ends_with_the_same_adapter() {
    let place = Place::new();
    place.encoder();
    place.mails();
    let run = format!("{RUN} --steps 400 --save-every 3 --keep 1");
    place.train(&format!("{run} --output @whole"));

    let log = place.path("killed/log.jsonl");
    let (mut line, mut seed, mut kills) = (format!("{run} --output @killed"), 7u64, 0);
    while kills < 20 {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let before = steps(&log).len() as u64;
        let mut child = start(&place, &line);
        line = "--resume --output @killed".into();
        // After so many steps more, and a little later: in the middle of a step, or of a checkpoint.
        let seen = before.saturating_sub(3) + 1 + (seed >> 33) % 6;
        assert!(
            wait_for(&mut child, &log, seen),
            "it was over before kill {kills}"
        );
        sleep(Duration::from_micros((seed >> 40) % 4000));
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    place.train(&line);
    assert!(
        compared(&place, "killed") == compared(&place, "whole"),
        "the runs differ"
    );
}

#[test]
fn ctrl_c_saves_a_checkpoint_and_says_how_to_go_on() {
    let place = Place::new();
    place.encoder();
    place.mails();
    let mut child = start(
        &place,
        &format!("{RUN} --steps 100000 --save-every never --output @out"),
    );
    assert!(wait_for(&mut child, &place.path("out/log.jsonl"), 3));
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let done = steps(&place.path("out/log.jsonl")).len();
    let told = crate::text(&output.stderr);
    let expected = format!(
        "a checkpoint holds step {done}; to go on: lora train --resume --output {}\nstopped on request\n",
        place.name("out")
    );
    assert!(told.ends_with(&expected), "{told}");
    assert!(!place.path("out/adapter_model.safetensors").exists());
    assert!(
        place
            .path(&format!("out/checkpoints/step-{done:08}.safetensors"))
            .is_file()
    );

    let steps = done + 9;
    place.train(&format!("--resume --output @out --steps {steps}"));
    place.train(&format!(
        "{RUN} --steps {steps} --save-every never --output @whole"
    ));
    assert!(
        compared(&place, "out") == compared(&place, "whole"),
        "the runs differ"
    );
    // A run that is over stays as it is.
    let held = compared(&place, "out");
    place.train("--resume --output @out");
    assert!(compared(&place, "out") == held);
    let error = place.refused("--resume --output @out --seed 4");
    assert!(
        error.contains("`seed` was 3 when the checkpoint was written, and is 4"),
        "{error}"
    );
}

pub fn signal(child: &Child, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}
