//! Holds what ARCHITECTURE.md promises about the source: import order, who may use FUSE and unsafe code, file heads and sizes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms from the ground up; a room imports rooms of lower rank only. `config` serves `mount` and `cli`.
const RANKS: [(&str, u32); 11] = [
    ("sys", 0),
    ("crypto", 1),
    ("store", 1),
    ("format", 2),
    ("keys", 3),
    ("file", 4),
    ("fs", 5),
    ("fuse", 6),
    ("config", 6),
    ("mount", 7),
    ("cli", 8),
];
fn rank(room: &str) -> Option<u32> {
    RANKS.iter().find(|(name, _)| *name == room).map(|(_, rank)| *rank)
}

/// Source files as (path below `src`, text).
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut pending) = (Vec::new(), vec![root.clone()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(&root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(found.len() > 20);
    found
}
/// The room of a file: its first directory or its own name.
fn room(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}
/// Text without comments, so that prose may name anything.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}
/// Every room that a file names after `crate::`, also inside `use crate::{a, b::c}`.
fn imported(text: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    let text = code(text);
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut word = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => word.clear(),
                    c if depth == 0 && (c.is_alphanumeric() || c == '_') => word.push(c),
                    ':' if depth == 0 && !word.is_empty() => drop(rooms.insert(std::mem::take(&mut word))),
                    _ => {}
                }
            }
            continue;
        }
        rooms.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
    }
    rooms
}

#[test]
fn imports_point_strictly_downward() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let from = room(&path);
        let Some(own) = rank(&from) else { continue };
        for to in imported(&text).iter().filter(|to| **to != from) {
            if rank(to).is_some_and(|other| other >= own) {
                wrong.push(format!("{}: {from} imports {to}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_import_scanner_sees_what_it_must() {
    let text =
        "use crate::{fs::{errno, Ino}, keys::uri};\nuse crate::store; // crate::cli\nlet x = crate::file::probe();";
    let want: BTreeSet<String> = ["fs", "keys", "store", "file"].map(String::from).into();
    assert_eq!(imported(text), want);
}

#[test]
fn every_room_has_a_rank() {
    for (path, _) in sources() {
        let room = room(&path);
        assert!(rank(&room).is_some() || ["lib", "main"].contains(&room.as_str()), "{room} has no place in the order");
    }
}

#[test]
fn only_the_adapter_knows_the_fuse_library() {
    for (path, text) in sources() {
        let uses = code(&text).contains("fuser::");
        assert!(!uses || room(&path) == "fuse", "{} uses fuser", path.display());
    }
}

#[test]
fn unsafe_code_stays_in_sys_and_says_why() {
    for (path, text) in sources() {
        let uses = code(&text).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
        assert!(!uses || room(&path) == "sys", "{} has unsafe code", path.display());
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let starts = code(line).contains("unsafe {") || code(line).contains("unsafe impl");
            // The reason stands above the statement that the block is part of.
            let reasoned = lines[number.saturating_sub(6)..=number].iter().any(|above| above.contains("SAFETY:"));
            assert!(!starts || reasoned, "{}:{}: unsafe without SAFETY", path.display(), number + 1);
        }
    }
}

#[test]
fn files_say_what_they_own_and_stay_small() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if !text.starts_with("//! ") {
            wrong.push(format!("{} does not say what it owns", path.display()));
        }
        if text.lines().count() >= 700 {
            wrong.push(format!("{} has {} lines", path.display(), text.lines().count()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_unfinished_is_left() {
    let words = [concat!("to", "do!("), concat!("un", "implemented!("), concat!("FIX", "ME"), "allow(dead_code)"];
    let mut found = Vec::new();
    for (path, text) in sources() {
        found.extend(
            words.iter().filter(|word| text.contains(**word)).map(|word| format!("{}: {word}", path.display())),
        );
    }
    assert!(found.is_empty(), "{found:#?}");
}
