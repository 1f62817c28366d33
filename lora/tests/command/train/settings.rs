//! Settings: flags over a file over defaults.

use super::{Place, bard};
use serde_json::json;
use std::fs;

/// A run of one step, with the settings that it used.
fn used(place: &Place, line: &str) -> toml::Table {
    place.train(&format!("{line} --output @out --force"));
    let text = fs::read_to_string(place.path("out/train.toml")).unwrap();
    toml::from_str(&text).unwrap()
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let place = Place::new();
    let data = place.jsonl("data.jsonl", [json!({"text": "a line of words"})]);
    let run = "steps = 1\nheld_out = 0\nmax-length = 16\n";
    place.write(
        "run.toml",
        format!(
            "model = \"{}\"\ndata = \"{data}\"\n{run}rank = 4\nlr = 0.01\ntarget_modules = [\"q_proj\"]\n",
            bard()
        ),
    );
    let settings = used(&place, "--config @run.toml --rank 2 --dora");
    let integer = |key: &str| settings[key].as_integer();
    assert_eq!(
        (integer("rank"), integer("max_length")),
        (Some(2), Some(16))
    );
    // The rank of the flag decides the default of alpha.
    assert_eq!(settings["alpha"].as_float(), Some(4.0));
    assert_eq!(settings["lr"].as_float(), Some(0.01));
    assert_eq!(settings["schedule"].as_str(), Some("cosine"));
    assert_eq!(settings["dora"].as_bool(), Some(true));
    // One takes the place of the other.
    assert!(!settings.contains_key("epochs"));
    let settings = used(
        &place,
        "--config @run.toml --epochs 1 --target-regex .*k_proj",
    );
    assert!(!settings.contains_key("steps") && !settings.contains_key("target_modules"));

    let yaml = format!(
        "model: {}\ndata: {data}\nsteps: 1\nheld_out: 0\nmax_length: 16\n",
        bard()
    );
    place.write(
        "run.yaml",
        yaml + "rank: 3\ntarget_modules: q_proj, v_proj\neval_every: 2\ndora: true\n",
    );
    let settings = used(&place, "--config @run.yaml --dora=false");
    assert_eq!(settings["rank"].as_integer(), Some(3));
    assert_eq!(settings["dora"].as_bool(), Some(false));
    assert_eq!(settings["eval_every"].as_integer(), Some(2));
    assert_eq!(
        settings["target_modules"].to_string(),
        r#"["q_proj", "v_proj"]"#
    );
    // What was used is a file of settings.
    let again = used(&place, "--config @out/train.toml");
    assert_eq!(again, settings);
}

#[test]
fn a_file_that_does_not_do_is_refused_by_key() {
    let place = Place::new();
    let data = place.jsonl("data.jsonl", [json!({"text": "a line of words"})]);
    let refused = |file: &str, settings: &str| {
        place.write(file, settings);
        place.refused(&format!(
            "--config @{file} --model {} --data {data} --output @out",
            bard()
        ))
    };
    assert_eq!(
        refused("a.toml", "max_lenght = 3"),
        "@a.toml: `max_lenght` is no setting; did you mean `max_length`?"
    );
    assert_eq!(
        refused("a.yaml", "zzz: 3"),
        "@a.yaml: `zzz` is no setting: `lora train --help` lists them"
    );
    assert_eq!(
        refused("a.toml", "lr = \"high\""),
        "`lr` of @a.toml: invalid type: string \"high\", expected f64"
    );
    assert_eq!(
        refused("a.toml", "rank = 0\ndropout = 1.5"),
        "the settings do not do:\n  - `rank` of @a.toml is 0: it must be at least 1\n  - `dropout` of @a.toml is \
         1.5: it must be from 0 to below 1"
    );
    assert_eq!(
        refused("a.toml", "epochs = 1\nsteps = 2"),
        "`epochs` of @a.toml and `steps` of @a.toml exclude each other: keep one"
    );
    assert_eq!(
        refused("a.json", "{}"),
        "@a.json: settings are in a file that ends in .toml, .yaml or .yml"
    );
    assert!(refused("a.toml", "rank = ").starts_with("@a.toml is not as settings are written: "));
    assert!(!place.path("out").exists());
}
