//! `--dry-run`, and the lines for people.

use super::{Place, bard};
use serde_json::json;

#[test]
fn a_dry_run_tells_memory_and_steps_and_writes_nothing() {
    let place = Place::new();
    let texts = (0..10).map(|number| json!({"text": format!("text number {number}")}));
    place.jsonl("texts.jsonl", texts);
    let run = format!(
        "--model {} --data @texts.jsonl --max-length 16 --epochs 2 --batch 3 --accumulate 2 --output @out",
        bard()
    );
    let plan = place.train(&format!("{run} --dry-run"));
    // Of nine texts three batches, of these two steps.
    assert_eq!(
        (&plan["steps"], &plan["batches_per_epoch"]),
        (&json!(4), &json!(3))
    );
    // Rank 8 on all linear layers of four blocks of width 128.
    let block = 8 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 384));
    assert_eq!(plan["trainable"], 4 * block);
    let memory = &plan["memory"];
    assert_eq!(memory["weights"], 853_376 * 4);
    assert_eq!(memory["trained"], 4 * 4 * block);
    assert_eq!(memory["optimizer"], 2 * 4 * 4 * block);
    if cfg!(target_os = "linux") {
        assert!(memory["values"].as_u64().is_some());
    }
    assert!(!place.path("out").exists());

    let shown = place.shown(&format!("{run} --dry-run"));
    for line in [
        "steps   4, of 3 batches an epoch",
        "nothing was trained or written (--dry-run)",
        "data    @texts.jsonl: 9 texts to train on, 1 held out",
    ] {
        let line = line.replace('@', &format!("{}/", place.dir.path().display()));
        assert!(shown.contains(&line), "{shown}");
    }
    assert!(shown.contains("model.layers.3.mlp.down_proj"), "{shown}");
    // A run may be planned where another is.
    place.train(&run.replace("--epochs 2", "--steps 1"));
    place.train(&format!("{run} --dry-run"));
}

#[test]
fn lines_without_a_terminal_are_plain() {
    let place = Place::new();
    place.encoder();
    place.mails();
    let run = "--model @encoder --data @mails.jsonl --epochs 2 --batch 4 --output @out";
    let args = place.line(run);
    let output = crate::lora(args.iter().map(String::as_str))
        .output()
        .unwrap();
    let (out, err) = (crate::text(&output.stdout), crate::text(&output.stderr));
    assert!(
        !out.contains('\u{1b}') && !err.contains('\u{1b}'),
        "{out}{err}"
    );
    assert_eq!(
        err.lines()
            .filter(|line| line.starts_with("epoch  "))
            .count(),
        2,
        "{err}"
    );
    for start in ["model ", "data ", "LoRA ", "before ", "accuracy ", "saved "] {
        assert!(
            out.lines().any(|line| line.starts_with(start)),
            "{start}: {out}"
        );
    }
}
