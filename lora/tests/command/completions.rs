use crate::{lora, text};

#[test]
fn shells_and_man_learn_the_commands() {
    for (kind, line) in [("bash", "complete -F _lora"), ("man", ".TH lora 1")] {
        let output = lora(["completions", kind]).assert().success();
        let printed = text(&output.get_output().stdout);
        assert!(printed.contains(line), "{kind}: {printed}");
    }
}

#[test]
fn a_line_that_cannot_be_understood_ends_with_2() {
    lora(["completions", "tcsh"]).assert().code(2);
}
