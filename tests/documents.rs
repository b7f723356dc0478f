//! Holds the documents to the tests and the program: every promise of doc/SEMANTICS.md and every line of doc/RELIABILITY.md
//! names a test that exists.

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
/// Every `tests/FILE.rs::NAME` or `src/FILE.rs::NAME` between backquotes.
fn named_tests(text: &str) -> Vec<(String, String)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let tests = quoted.filter(|word| word.starts_with("tests/") || word.starts_with("src/"));
    tests.filter_map(|word| word.split_once("::")).map(|(file, name)| (file.to_owned(), name.to_owned())).collect()
}

/// The tests that a document names, at least `least` of them, are there and are tests.
fn all_exist(document: &str, least: usize) {
    let tests = named_tests(&read(document));
    assert!(tests.len() > least, "only {} tests are named in {document}", tests.len());
    let mut missing = Vec::new();
    for (file, name) in tests {
        let text = read(&file);
        let declared = text.find(&format!("fn {name}("));
        // The attribute stands on the lines just above.
        let is_test = declared.is_some_and(|at| text[..at].trim_end().ends_with("#[test]"));
        if !is_test {
            missing.push(format!("{file}::{name}"));
        }
    }
    assert!(missing.is_empty(), "{document} names what is not there: {missing:#?}");
}

#[test]
fn every_test_that_semantics_names_exists() {
    all_exist("doc/SEMANTICS.md", 50);
    all_exist("doc/KEYS.md", 0);
}

#[test]
fn every_test_that_reliability_names_exists() {
    all_exist("doc/RELIABILITY.md", 30);
}

/// A promise without a test is a wish: each line of the tables, which begin with `heading`, names one.
fn all_rows_name_a_test(document: &str, heading: &str) {
    for line in read(document).lines().filter(|line| line.starts_with("| ") && !line.starts_with(heading)) {
        let named = !named_tests(line).is_empty() || line.contains("`tests/suites/");
        assert!(named, "no test: {line}");
    }
}

#[test]
fn every_row_of_semantics_names_a_test() {
    all_rows_name_a_test("doc/SEMANTICS.md", "| Promise");
}

#[test]
fn every_row_of_reliability_names_a_test() {
    all_rows_name_a_test("doc/RELIABILITY.md", "| What");
}

#[test]
fn suites_that_the_documents_name_exist() {
    for document in ["README.md", "SECURITY.md", "doc/SEMANTICS.md", "doc/RELIABILITY.md"] {
        for word in read(document).split('`').skip(1).step_by(2).filter(|word| word.starts_with("tests/suites/")) {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(word.split_whitespace().next().unwrap());
            assert!(path.exists(), "{document} names {word}");
        }
    }
}

/// doc/CHECK.md has a row for each code of the program, word for word, and no other.
#[test]
fn every_code_of_check_is_documented() {
    let document = read("doc/CHECK.md");
    let table = document.split_once("## Codes").unwrap().1;
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
    let want: Vec<String> = envelopefs::check::CODES
        .iter()
        .map(|c| format!("| `{}` | {} | {} | {} |", c.word, c.severity.word(), c.meaning, c.advice))
        .collect();
    assert_eq!(rows, want);
}

#[test]
fn the_readme_names_every_exit_code() {
    let readme = read("README.md");
    for code in 0..=7 {
        assert!(readme.contains(&format!("| {code} |")), "exit code {code}");
    }
}
