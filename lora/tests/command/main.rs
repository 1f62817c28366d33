//! The command `lora` as a process: what it prints, writes, refuses.

mod chat;
mod classify;
mod combine;
mod completions;
mod convert;
mod diff;
mod embed;
mod eval;
mod extract;
mod files;
mod generate;
mod hub;
mod images;
mod inspect;
mod merge;
mod models;
mod pages;
mod resize;
mod train;
mod vit;

use assert_cmd::Command;

/// The command with these arguments.
fn lora<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lora"));
    command.args(args).env_remove("RAYON_NUM_THREADS");
    command
}

/// The JSON object that the command prints.
fn object(mut command: Command) -> serde_json::Value {
    let output = command.assert().success();
    let printed = text(&output.get_output().stdout);
    assert_eq!(printed.lines().count(), 1, "{printed}");
    serde_json::from_str(&printed).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
