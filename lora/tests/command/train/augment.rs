//! Random changes to training images.

use super::Place;
use crate::models::{colours, vit};
use std::fs;

/// A run whose numbers do not depend on its length; three batches an epoch.
const RUN: &str = "--model @vit --data @colours --batch 4 --lr 1e-2 --schedule constant --warmup 0 --seed 3 \
                   --check-gradients=false --eval-every never";

const ALL: &str =
    "--hflip 0.5 --vflip 0.25 --scale 0.4,0.9 --ratio 0.8,1.25 --color-jitter 0.3 --warp 0.05";

fn place() -> Place {
    let place = Place::new();
    vit(&place.path("vit"));
    colours(&place.path(""));
    place
}

/// The adapter of a run.
fn adapter(place: &Place, line: &str, output: &str) -> Vec<u8> {
    place.train(&format!("{line} --output @{output}"));
    fs::read(place.path(&format!("{output}/adapter_model.safetensors"))).unwrap()
}

#[test]
fn each_change_changes_the_run_and_is_the_same_again() {
    let place = place();
    let run = format!("{RUN} --epochs 1");
    let plain = adapter(&place, &run, "plain");
    let mut seen = vec![plain.clone()];
    for (index, change) in [
        "--hflip 0.5",
        "--vflip 0.5",
        "--scale 0.3,0.8",
        "--scale 0.3,0.8 --ratio 1,1",
        "--color-jitter 0.4",
        "--warp 0.1",
        ALL,
    ]
    .into_iter()
    .enumerate()
    {
        let line = format!("{run} {change}");
        let found = adapter(&place, &line, &format!("{index}"));
        assert!(!seen.contains(&found), "{change} changes nothing");
        assert!(
            adapter(&place, &line, &format!("{index}-again")) == found,
            "{change} differs"
        );
        seen.push(found);
    }
    // What is off is no change.
    let off = "--hflip 0 --vflip 0 --color-jitter 0 --warp 0";
    assert!(adapter(&place, &format!("{run} {off}"), "off") == plain);
    // Another seed draws other changes, in another order.
    let other = run.replace("--seed 3", "--seed 4");
    assert!(!seen.contains(&adapter(&place, &format!("{other} {ALL}"), "seed")));
}

/// In the middle of an epoch, in the third one.
#[test]
fn a_run_that_goes_on_sees_the_same_images() {
    let place = place();
    let whole = adapter(&place, &format!("{RUN} {ALL} --steps 11"), "whole");
    adapter(&place, &format!("{RUN} {ALL} --steps 7"), "out");
    let found = adapter(&place, "--resume --steps 11", "out");
    assert!(found == whole, "the runs differ");

    assert_eq!(
        place.refused("--resume --output @out --steps 12 --hflip 0.1 --scale 0.5,0.9"),
        "--hflip was 0.5 when the run began, and is 0.1: set it as it was, or begin a new run with another \
         --output\n--scale was [0.4,0.9] when the run began, and is [0.5,0.9]: set it as it was, or begin a new \
         run with another --output"
    );
}

#[test]
fn the_settings_stand_in_files_too() {
    let place = place();
    let run = format!("{RUN} --steps 2");
    let flags = adapter(&place, &format!("{run} {ALL}"), "flags");
    let settings = fs::read_to_string(place.path("flags/train.toml")).unwrap();
    let settings: toml::Table = toml::from_str(&settings).unwrap();
    for (key, value) in [
        ("hflip", toml::Value::from(0.5)),
        ("vflip", 0.25.into()),
        ("scale", vec![0.4, 0.9].into()),
        ("ratio", vec![0.8, 1.25].into()),
        ("color_jitter", 0.3.into()),
        ("warp", 0.05.into()),
    ] {
        assert_eq!(settings[key], value, "{key}");
    }
    place.write(
        "run.toml",
        "hflip = 0.5\nvflip = 0.25\nscale = [0.4, 0.9]\nratio = [0.8, 1.25]\ncolor-jitter = 0.3\nwarp = 0.05\n",
    );
    place.write(
        "run.yaml",
        "hflip: 0.5\nvflip: 0.25\nscale: [0.4, 0.9]\nratio: [0.8, 1.25]\ncolor_jitter: 0.3\nwarp: 0.05\n",
    );
    for file in ["run.toml", "run.yaml"] {
        let line = format!("{run} --config @{file}");
        assert!(
            adapter(&place, &line, &format!("of-{file}")) == flags,
            "{file}"
        );
    }
    // As timm has it: two numbers, parted by a space.
    let shown = place.shown(&format!(
        "{run} --scale 0.4 1.0 --hflip 0.5 --output @shown --dry-run"
    ));
    let fact = "        training images are changed at random: scale 0.4 to 1, hflip 0.5\n";
    assert!(shown.contains(fact), "{shown}");
    let shown = place.shown(&format!("{run} --output @shown --dry-run"));
    assert!(!shown.contains("changed at random"), "{shown}");
}

#[test]
fn what_is_out_of_range_or_without_effect_is_named() {
    let place = place();
    place.encoder();
    place.mails();
    for (settings, error) in [
        ("--hflip 1.5", "--hflip is 1.5: it must be from 0 to 1"),
        ("--vflip=-1", "--vflip is -1: it must be from 0 to 1"),
        (
            "--color-jitter 2",
            "--color-jitter is 2: it must be from 0 to 1",
        ),
        ("--warp 0.6", "--warp is 0.6: it must be from 0 to 0.5"),
        (
            "--scale 0.9,0.4",
            "--scale is 0.9, 0.4: the least share of the area, above 0, and the largest, 1 at most, are expected",
        ),
        (
            "--scale 0.9",
            "--scale: invalid length 1, expected an array of length 2",
        ),
        (
            "--scale 0.5,1 --ratio 0,1",
            "--ratio is 0, 1: the least width over height, above 0, and the largest are expected",
        ),
        ("--ratio 0.5,1", "--ratio needs `scale`: leave it out"),
    ] {
        assert_eq!(
            place.refused(&format!("{RUN} {settings} --output @out")),
            error
        );
    }
    let texts = "--model @encoder --data @mails.jsonl --output @out --hflip 0.5 --warp 0.1";
    assert_eq!(
        place.refused(texts),
        "the settings do not do:\n  - --hflip is for images alone: leave it out\n  - --warp is for images alone: \
         leave it out"
    );
    assert!(!place.path("out").exists());
}
