//! Holds what ARCHITECTURE.md promises about the source: import order, who may use FUSE and unsafe code, file heads and sizes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms from the ground up; a room imports rooms of lower rank only. `config` serves `mount` and `cli`.
const RANKS: [(&str, u32); 15] = [
    ("sys", 0),
    ("sync", 0),
    ("crypto", 1),
    ("store", 1),
    ("format", 2),
    ("keys", 3),
    ("file", 4),
    ("kms", 4),
    ("fs", 5),
    ("fuse", 6),
    ("check", 6),
    ("config", 6),
    ("mount", 7),
    ("cli", 8),
    ("fuzzing", 9),
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

/// Types whose values are secret. Those of them that can be printed at all must not be part of what prints itself.
const SECRET_TYPES: [&str; 4] = ["Secret32", "Zeroizing", "Locked", "SecretText"];

/// Structs and enums of a file: the attributes above, the name, the body.
fn types(text: &str) -> Vec<(String, String, String)> {
    let text = code(text);
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let words: Vec<&str> =
            line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
        let Some(at) = words.iter().position(|word| ["struct", "enum"].contains(word)) else { continue };
        let Some(name) =
            words.get(at + 1).filter(|_| words[..at].iter().all(|w| ["pub", "super", "crate", "in"].contains(w)))
        else {
            continue;
        };
        // Attributes stand on the lines right above, of which comments have become empty ones.
        let first = (0..number)
            .rev()
            .take_while(|n| lines[*n].trim().is_empty() || !lines[*n].trim().ends_with([';', '}', '{']));
        let attributes: Vec<&str> = first.map(|n| lines[n]).collect();
        let (mut depth, mut body) = (0, String::new());
        for c in lines[number..].join("\n").chars() {
            body.push(c);
            match c {
                '{' | '(' => depth += 1,
                '}' | ')' => depth -= 1,
                ';' if depth == 0 => break,
                _ => continue,
            }
            if depth == 0 && c == '}' {
                break;
            }
        }
        found.push((attributes.join(" "), (*name).to_owned(), body));
    }
    found
}
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
}
/// What is wrong with the way in which this file's types print themselves.
fn printed_secrets(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let secret = |text: &str| words(text).any(|word| SECRET_TYPES.contains(&word));
    let mut all = types(text);
    all.retain(|(_, _, body)| secret(body));
    for (attributes, name, body) in &all {
        if words(attributes).any(|word| word == "Debug") {
            wrong.push(format!("{name} holds secrets and derives Debug"));
        }
        let secret_fields: Vec<&str> = body.split(['{', ',', '\n']).filter(|field| secret(field)).collect();
        let code = code(text);
        for kind in ["Debug", "Display"] {
            for block in
                code.split("\nimpl").filter(|b| b.lines().next().unwrap_or("").contains(&format!("{kind} for {name} ")))
            {
                let block = block.split("\n}").next().unwrap_or(block);
                for field in &secret_fields {
                    let field = field.split(':').next().unwrap_or("").trim().trim_start_matches("pub ");
                    if !field.is_empty() && block.contains(&format!("self.{field}")) || block.contains("self.0") {
                        wrong.push(format!("{name} prints its {field}"));
                    }
                }
            }
        }
    }
    wrong
}

#[test]
fn nothing_secret_prints_itself() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (path, text) in sources() {
        seen += types(&text).iter().filter(|(_, _, body)| words(body).any(|w| SECRET_TYPES.contains(&w))).count();
        wrong.extend(printed_secrets(&text).iter().map(|what| format!("{}: {what}", path.display())));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 8, "only {seen} types with secrets were recognised");
}

#[test]
fn the_scanner_of_printed_secrets_sees_what_it_must() {
    let good = "#[derive(Clone)]\npub struct A {\n    key: Secret32,\n}\n\n#[derive(Debug)]\nstruct B(u8);\n";
    assert_eq!(printed_secrets(good), Vec::<String>::new());
    let derived =
        "#[derive(Clone, Debug)]\n/// Words.\npub(super) struct A {\n    n: u8,\n    key: Option<Secret32>,\n}\n";
    assert_eq!(printed_secrets(derived), ["A holds secrets and derives Debug"]);
    let tuple = "#[derive(Debug)]\npub struct P(Zeroizing<Vec<u8>>);\n";
    assert_eq!(printed_secrets(tuple), ["P holds secrets and derives Debug"]);
    let variant = "#[derive(Debug)]\nenum M {\n    Plain(Secret32),\n    Other,\n}\n";
    assert_eq!(printed_secrets(variant), ["M holds secrets and derives Debug"]);
    let by_hand = "struct A {\n    key: Secret32,\n}\n\nimpl fmt::Debug for A {\n    fn fmt() {\n        write!(f, self.key)\n    }\n}\n";
    assert_eq!(printed_secrets(by_hand), ["A prints its key"]);
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
