use crate::files::{Folder, json, random, rows};
use crate::{lora, text};
use candle_core::DType;

#[test]
fn updates_are_compared_whatever_their_factors() {
    let folder = Folder::new();
    let (a, b) = (random(&[2, 5], 1), random(&[4, 2], 2));
    let config = |alpha: f64| format!(r#""r": 2, "lora_alpha": {alpha}, "target_modules": ["fc"]"#);
    folder.adapter(
        "one",
        &config(2.0),
        &[
            ("h.0.fc", a.clone(), b.clone()),
            ("h.1.fc", a.clone(), b.clone()),
        ],
    );
    // Another alpha, which B makes good in one layer.
    let half = (&b * 0.5).unwrap();
    folder.adapter(
        "two",
        &config(4.0),
        &[("h.0.fc", a.clone(), half), ("h.1.fc", a, b)],
    );

    let args = ["diff", &folder.arg("one"), &folder.arg("two")];
    let output = lora(args).arg("--json").assert().success();
    let found = json(&output.get_output().stdout);
    assert_eq!(found["settings"][0]["key"], "lora_alpha");
    assert!(found["layers"][0]["relative"].as_f64().unwrap() < 1e-15);
    assert!((found["layers"][1]["relative"].as_f64().unwrap() - 1.0).abs() < 1e-12);
    assert!((found["relative"].as_f64().unwrap() - 0.5f64.sqrt()).abs() < 1e-12);
    let output = lora(args).arg("--tolerance=1e-12").assert().success();
    let printed = text(&output.get_output().stdout);
    assert!(
        printed.contains("\nsetting     A    B\nlora_alpha  2    4\n")
            || printed.contains("lora_alpha  2  4"),
        "{printed}"
    );
    assert!(
        printed.contains("1 of 2 updates differ; relative difference of all updates 70.71 %"),
        "{printed}"
    );

    lora(args).arg("--exit-code").assert().code(1);
    let same = [
        "diff",
        &folder.arg("one"),
        &folder.arg("one"),
        "--exit-code",
    ];
    let output = lora(same).assert().success();
    assert!(text(&output.get_output().stdout).ends_with("\nthe two do not differ\n"));
}

#[test]
fn checkpoints_are_compared_tensor_by_tensor() {
    let folder = Folder::new();
    folder.tensors(
        "one.safetensors",
        &[
            ("a", rows(&[[3.0, 4.0]])),
            ("b", rows(&[[1.0, 2.0]])),
            ("c", rows(&[[1.0]])),
        ],
    );
    folder.tensors(
        "two.safetensors",
        &[
            ("a", rows(&[[3.0, 6.0]])),
            ("b", rows(&[[1.0, 2.0]]).to_dtype(DType::F16).unwrap()),
            ("d", rows(&[[1.0]])),
        ],
    );
    let args = [
        "diff",
        &folder.arg("one.safetensors"),
        &folder.arg("two.safetensors"),
    ];
    let output = lora(args).assert().success();
    let printed = text(&output.get_output().stdout);
    let (_, rest) = printed.split_once("\n\n").unwrap();
    let expected = "\
only in A
  c

only in B
  d

2 of 2 tensors differ; relative difference of all tensors 36.51 %
tensor  A           B           largest  relative
a       F32 [1, 2]  same              2      40 %
b       F32 [1, 2]  F16 [1, 2]        0       0 %
";
    assert_eq!(rest, expected);
}

#[test]
fn only_two_of_a_kind_are_compared() {
    let folder = Folder::new();
    folder.adapter(
        "one",
        r#""r": 1, "target_modules": ["a"]"#,
        &[("a", rows(&[[1.0]]), rows(&[[1.0]]))],
    );
    folder.tensors("two.safetensors", &[("a.weight", rows(&[[1.0]]))]);
    let output = lora(["diff", &folder.arg("one"), &folder.arg("two.safetensors")])
        .assert()
        .code(1);
    let printed = text(&output.get_output().stderr);
    assert!(
        printed.contains("is an adapter") && printed.contains("only two of a kind"),
        "{printed}"
    );
}
