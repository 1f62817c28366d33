//! The command `lora` as a process: what it prints, writes, refuses.

mod completions;
mod train;

use assert_cmd::Command;

/// The command with these arguments.
fn lora<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lora"));
    command.args(args).env_remove("RAYON_NUM_THREADS");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
