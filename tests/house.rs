//! The rooms of `lora/src`: a room imports only from those that stand below it in CONTRIBUTING's
//! picture. The four rooms marked `*` are one storey: `LoraModule`'s provided methods reach all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The rooms from the ground up, each with its storey.
fn storeys() -> BTreeMap<String, usize> {
    let page = fs::read_to_string(Path::new(ROOT).join("CONTRIBUTING.md")).unwrap();
    let (_, picture) = page.split_once("```text\nlora/src\n").expect("the picture");
    let (picture, _) = picture.split_once("```").unwrap();
    let mut storeys = BTreeMap::new();
    let mut shared = None;
    for (storey, line) in picture.lines().rev().enumerate() {
        let room = line.split_whitespace().next().unwrap();
        let (room, storey) = match room.strip_suffix('*') {
            Some(room) => (room, *shared.get_or_insert(storey)),
            None => (room, storey),
        };
        storeys.insert(room.to_string(), storey);
    }
    storeys
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file, without comments and unit tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// What follows `crate::` in the code: `a` and `B` for `crate::{a::x, B}`.
fn imports(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (place, start) in code.match_indices("crate::") {
        let rest = &code[place + start.len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let (mut depth, mut item) = (0, String::new());
            for char in list.chars() {
                match char {
                    '}' if depth == 0 => break,
                    ',' if depth == 0 => names.push(std::mem::take(&mut item)),
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => item.push(char),
                }
            }
            names.push(item);
        } else {
            names.push(rest.into());
        }
    }
    let word = |name: &String| -> String {
        let name = name.trim_start().chars();
        name.take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    names
        .iter()
        .map(word)
        .filter(|name| !name.is_empty())
        .collect()
}

/// Where the root's `pub use` takes each name from.
fn exports(lib: &str) -> BTreeMap<String, String> {
    let mut rooms = BTreeMap::new();
    for export in lib.split("pub use ").skip(1) {
        let export = export.split(';').next().unwrap();
        let (room, names) = export.split_once("::").unwrap();
        for name in names.split(|c: char| !c.is_alphanumeric() && c != '_') {
            rooms.insert(name.to_string(), room.to_string());
        }
    }
    rooms
}

#[test]
fn a_room_imports_only_from_below() {
    let source = Path::new(ROOT).join("lora/src");
    let (storeys, exports) = (storeys(), exports(&code(&source.join("lib.rs"))));
    let mut found = Vec::new();
    files(&source, &mut found);
    let (mut problems, mut rooms) = (BTreeSet::new(), BTreeSet::new());
    for path in found {
        let place = path.strip_prefix(&source).unwrap();
        let first = place.components().next().unwrap().as_os_str();
        let room = first.to_str().unwrap().trim_end_matches(".rs").to_string();
        let is_test = place.components().any(|part| {
            let part = part.as_os_str();
            part == "tests" || part == "tests.rs"
        });
        // The root hands out all rooms, `private` serves the derive, `bin` is a program that uses the library.
        if is_test || ["bin", "lib", "private"].contains(&room.as_str()) {
            continue;
        }
        let Some(storey) = storeys.get(&room) else {
            problems.insert(format!("`{room}` is not in the picture"));
            continue;
        };
        for name in imports(&code(&path)) {
            let other = exports.get(&name).unwrap_or(&name);
            match storeys.get(other) {
                Some(below) if below <= storey => {}
                Some(_) => {
                    problems.insert(format!("{} imports `{other}` from above", place.display()));
                }
                None => {
                    problems.insert(format!("{}: what is `{other}`?", place.display()));
                }
            }
        }
        rooms.insert(room);
    }
    let drawn: BTreeSet<String> = storeys.into_keys().collect();
    assert!(problems.is_empty(), "{problems:#?}");
    assert_eq!(rooms, drawn, "the picture shows the rooms that there are");
}

#[test]
fn imports_are_read() {
    let names = imports("use crate::{a::{b, c}, D};\nuse crate::e::F;\ncrate::g::h();");
    assert_eq!(names, ["a", "D", "e", "g"]);
    let exports = exports("pub use a::{B, c};\npub use d::E;");
    assert_eq!(exports["B"], "a");
    assert_eq!(exports["E"], "d");
}

/// The messages of a page's tables: what stands in backticks in a row's first cell, if anything does.
fn messages(page: &str) -> Vec<String> {
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = cells.map(|cell| cell.split(" | ").next().unwrap());
    let cells = cells.map(|cell| cell.trim_matches(|c| c == '`' || c == ' '));
    cells.map(str::to_string).collect()
}

#[test]
fn troubleshooting_explains_messages_that_there_are() {
    let mut found = Vec::new();
    files(&Path::new(ROOT).join("lora/src"), &mut found);
    let texts = found.iter().map(|path| fs::read_to_string(path).unwrap());
    // A message that goes on in the next line of code has a backslash there.
    let texts = texts.map(|text| text.replace("\\\n", " ").replace("\\\"", "\""));
    let text = texts.collect::<String>();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let page = Path::new(ROOT).join("lora/docs/troubleshooting.md");
    let messages = messages(&fs::read_to_string(page).unwrap());
    assert!(messages.len() > 20, "{messages:?}");
    for message in &messages {
        for piece in message
            .split("..")
            .map(|piece| piece.trim_matches(['`', ' ']))
        {
            assert!(
                text.contains(piece),
                "no message says {piece:?} of {message:?}"
            );
        }
    }
}
