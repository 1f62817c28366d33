//! What the macros accept and refuse, each case a file in `pass/` or `fail/`.
//!
//! A package of its own: trybuild checks all that the package depends on once more.

mod pass {
    pub mod cfg;
    pub mod containers;
    pub mod enums;
    pub mod forward;
    pub mod generics;
    pub mod methods;
    pub mod names;
    pub mod recursive;
    pub mod structs;
}

use pass::*;

/// These are part of this test, so that they are built once, with the dependencies of all tests.
#[test]
fn pass() {
    cfg::main();
    containers::main();
    enums::main();
    forward::main();
    generics::main();
    methods::main();
    names::main();
    recursive::main();
    structs::main();
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/pass"));
    assert_eq!(files.unwrap().count(), 9, "a file is not listed here");
}

#[test]
fn fail() {
    trybuild::TestCases::new().compile_fail("fail/*.rs");
}

/// Messages say which candle the crates are built with, as no attribute can compute that.
#[test]
fn messages_name_the_version_of_candle() {
    let manifest = include_str!("../../Cargo.toml");
    let (_, version) = manifest.split_once("candle-nn = \"").unwrap();
    let version: Vec<&str> = version.split('"').next().unwrap().split('.').collect();
    let text = include_str!("fail/foreign_field.stderr");
    let named = format!("this crate knows candle {}.{},", version[0], version[1]);
    assert!(text.contains(&named), "{named}");
}
