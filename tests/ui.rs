//! What the macros accept and refuse, each case a program in `ui/`.

#[path = "ui/pass/cfg.rs"]
mod cfg;
#[path = "ui/pass/containers.rs"]
mod containers;
#[path = "ui/pass/enums.rs"]
mod enums;
#[path = "ui/pass/forward.rs"]
mod forward;
#[path = "ui/pass/generics.rs"]
mod generics;
#[path = "ui/pass/names.rs"]
mod names;
#[path = "ui/pass/recursive.rs"]
mod recursive;
#[path = "ui/pass/structs.rs"]
mod structs;

/// These are part of this test, so that they are built once, with the dependencies of all tests.
#[test]
fn pass() {
    cfg::main();
    containers::main();
    enums::main();
    forward::main();
    generics::main();
    names::main();
    recursive::main();
    structs::main();
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/ui/pass"));
    assert_eq!(files.unwrap().count(), 8, "a file is not listed here");
}

#[test]
fn fail() {
    trybuild::TestCases::new().compile_fail("ui/fail/*.rs");
}
