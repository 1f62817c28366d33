//! The rules that are found, and those that are not.

use super::*;

const MODEL: [&str; 5] = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
];

fn naming(paths: &[&str], model: &[&str]) -> Result<Naming, String> {
    Naming::find(
        paths.iter().copied(),
        &with_modules(model.iter().copied()),
        &[],
    )
}

/// Every path of the file gets the model's, and back.
#[track_caller]
fn maps(pairs: &[(&str, &str)], model: &[&str]) {
    let paths: Vec<&str> = pairs.iter().map(|(path, _)| *path).collect();
    let naming = naming(&paths, model).unwrap();
    for (path, expected) in pairs {
        assert_eq!(naming.of(path), *expected);
        assert_eq!(naming.back(expected).unwrap(), *path);
    }
}

#[test]
fn prefixes_that_moved_are_found() {
    let q = |n: usize| format!("layers.{n}.self_attn.q_proj");
    for prefix in [
        "model",
        "",
        "module.model",
        "module",
        "base_model.model.model",
        "model.language_model",
        "language_model.model",
        "model.model",
    ] {
        let paths = [join(prefix, &q(0)), join(prefix, &q(1))];
        let expected = [join("model", &q(0)), join("model", &q(1))];
        maps(
            &[(&paths[0], &expected[0]), (&paths[1], &expected[1])],
            &MODEL,
        );
    }
    let bert = ["bert.encoder.layer.0.query.weight", "classifier.weight"];
    maps(
        &[
            ("encoder.layer.0.query", "bert.encoder.layer.0.query"),
            ("classifier", "classifier"),
        ],
        &bert,
    );
    let bare = ["encoder.layer.0.query.weight"];
    maps(
        &[("bert.encoder.layer.0.query", "encoder.layer.0.query")],
        &bare,
    );
}

#[test]
fn groups_move_each_in_its_way() {
    let model = [
        "language_model.model.layers.0.q.weight",
        "language_model.lm_head.weight",
        "vision_tower.layers.0.q.weight",
    ];
    maps(
        &[
            (
                "model.language_model.layers.0.q",
                "language_model.model.layers.0.q",
            ),
            ("model.vision_tower.layers.0.q", "vision_tower.layers.0.q"),
            ("lm_head", "language_model.lm_head"),
        ],
        &model,
    );
}

#[test]
fn what_fits_as_it_is_stays() {
    maps(
        &[
            ("layers.0.q", "layers.0.q"),
            ("model.layers.0.q", "model.layers.0.q"),
        ],
        &["layers.0.q", "model.layers.0.q"],
    );
    // A head that the checkpoint lacks does not keep the others from being found.
    let q = "layers.0.self_attn.q_proj";
    let naming = naming(&[q, "score"], &MODEL).unwrap();
    assert_eq!(naming.of(q), join("model", q));
    assert_eq!(naming.of("score"), "score");
    assert_eq!(
        naming.notes(),
        ["paths with `layers` in the adapter's file have `model.layers` in the model"]
    );
}

#[test]
fn two_readings_are_an_error() {
    let model = ["encoder.layers.0.q", "decoder.layers.0.q"];
    let problem = naming(&["layers.0.q"], &model).unwrap_err();
    for word in [
        "more than one way",
        "`layers.0.q` in the file",
        "`decoder.layers.0.q`, `encoder.layers.0.q` in the model",
        "AdapterDir::new(dir).rename(",
    ] {
        assert!(problem.contains(word), "{word}: {problem}");
    }
    // Two paths of the file for one of the model's.
    assert!(naming(&["module.fc", "fc"], &["fc.weight"]).is_err());
}

#[test]
fn other_names_and_numbers_are_other_layers() {
    for (path, model) in [
        ("encoder.fc", "decoder.fc.weight"),
        ("layers.1.fc", "layers.0.fc.weight"),
        ("fc", "layers.0.fc.weight"),
        ("layers.0.fc", "fc.weight"),
        ("fc1", "model.fc2.weight"),
    ] {
        assert_eq!(naming(&[path], &[model]).unwrap().of(path), path);
    }
}

#[test]
fn wrappers_are_left_out_anywhere() {
    let path = "model.layers.0._orig_mod.self_attn.q_proj";
    let naming = naming(&[path], &MODEL).unwrap();
    assert_eq!(naming.of(path), "model.layers.0.self_attn.q_proj");
    let back = naming.back("model.layers.0.self_attn.q_proj");
    assert_eq!(back.unwrap(), path);
    assert_eq!(naming.notes().len(), 1);
}

#[test]
fn the_users_rules_decide() {
    let rules = [
        ("vit.layers.*.attention.q_proj", "layer.*.query"),
        ("vit", "encoder"),
    ];
    let rules = rules.map(|(from, to)| (from.to_string(), to.to_string()));
    let naming = Naming::find(["x"], &HashSet::new(), &rules).unwrap();
    let path = "vit.layers.3.attention.q_proj.lora_A";
    assert_eq!(naming.of(path), "layer.3.query.lora_A");
    assert_eq!(
        naming.back("layer.3.query").unwrap(),
        "vit.layers.3.attention.q_proj"
    );
    assert_eq!(naming.of("vit.norm"), "encoder.norm");
    assert_eq!(naming.of("vita.norm"), "vita.norm");
    let wrong = [("a.*".to_string(), "b".to_string())];
    let problem = Naming::find(["x"], &HashSet::new(), &wrong).unwrap_err();
    assert!(problem.contains("same number of `*`"), "{problem}");
}

#[test]
fn a_path_outside_of_the_files_model_has_none() {
    let model = ["left.fc.weight", "right.fc.weight"];
    let known = with_modules(model);
    let rules = [(String::new(), "left".to_string())];
    let naming = Naming::find(["fc"], &known, &rules).unwrap();
    assert_eq!(naming.back("left.fc").unwrap(), "fc");
    assert_eq!(naming.back("right.fc"), None);
    let naming = Naming::find(["left.fc"], &known, &[]).unwrap();
    assert_eq!(naming.back("right.fc").unwrap(), "right.fc");
}

/// Names of many layers cost no more than their number.
#[test]
fn many_layers_are_found_in_time() {
    let layers = |prefix: &str| -> Vec<String> {
        let numbers = 0..20_000;
        numbers.map(|n| format!("{prefix}layers.{n}.fc")).collect()
    };
    let (file, model) = (layers(""), layers("model."));
    let known = with_modules(model.iter().map(String::as_str));
    let start = std::time::Instant::now();
    let naming = Naming::find(file.iter().map(String::as_str), &known, &[]).unwrap();
    assert_eq!(naming.of(&file[7]), model[7]);
    assert!(start.elapsed().as_secs() < 10);
}
