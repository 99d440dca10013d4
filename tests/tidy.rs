//! Style as a test: what a reviewer should not have to say twice.
//!
//! Each rule is a function from a file's text to its faults, so that the rules are tested
//! themselves.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::{repository, tracked_files};

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 800;
/// Of a comment's text, without indentation and marker: rustfmt bounds the code but not these.
const COMMENT_COLUMNS_MAX: usize = 100;

/// All that may lie at the top level.
const TOP_LEVEL: [&str; 15] = [
    ".ci",
    ".gitignore",
    ".rustfmt.toml",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "core",
    "cross",
    "edge",
    "host",
    "models",
    "tests",
];

/// Left over from work in progress. Written in two halves so that this file does not break its
/// rule.
const UNFINISHED: [&str; 5] = [
    concat!("todo", "!"),
    concat!("unimplemented", "!"),
    concat!("dbg", "!"),
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
];
/// Places on somebody's machine.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];

type Faults = Vec<(usize, String)>;

/// The faults of every line for which `rule` names one.
fn by_line(text: &str, rule: impl Fn(&str) -> Option<String>) -> Faults {
    let lines = text.lines().enumerate();
    lines.filter_map(|(index, line)| rule(line).map(|fault| (index + 1, fault))).collect()
}

fn any_text_faults(text: &str) -> Faults {
    let mut faults = by_line(text, |line| {
        let unfinished = UNFINISHED.iter().find(|word| line.contains(**word));
        let place = MACHINE_PATHS.iter().find(|path| line.contains(**path));
        unfinished.or(place).map(|word| format!("`{word}` has no place here"))
    });
    faults.extend(by_line(text, |line| line.ends_with(' ').then(|| "a trailing blank".to_owned())));
    if !text.ends_with('\n') {
        faults.push((text.lines().count(), "empty, or no newline at the end".to_owned()));
    }
    faults
}

fn rust_faults(text: &str) -> Faults {
    let mut faults = by_line(text, |line| line.contains('\t').then(|| "a tab".to_owned()));
    faults.extend(by_line(text, |line| {
        let comment = line.trim_start();
        let words =
            ["//! ", "/// ", "// "].iter().find_map(|marker| comment.strip_prefix(marker))?;
        let columns = words.chars().count();
        (columns > COMMENT_COLUMNS_MAX && !words.contains("://"))
            .then(|| format!("a comment of {columns} columns, {COMMENT_COLUMNS_MAX} at most"))
    }));
    faults.extend(by_line(text, |line| {
        let attribute = line.trim_start().strip_prefix("#[").unwrap_or_default();
        attribute.starts_with("ignore]").then(|| "`ignore` without a reason".to_owned())
    }));
    faults.extend(unreasoned_exceptions(text));
    faults.extend(function_lengths(text).into_iter().filter_map(|(line, name, length)| {
        (length > FUNCTION_LINES_MAX)
            .then(|| (line, format!("`{name}` has {length} lines, {FUNCTION_LINES_MAX} at most")))
    }));
    let length = text.lines().count();
    if length > FILE_LINES_MAX {
        faults.push((length, format!("{length} lines, {FILE_LINES_MAX} at most")));
    }
    faults
}

/// `allow` and `expect` attributes, which may span lines, without a reason.
fn unreasoned_exceptions(text: &str) -> Faults {
    let lines: Vec<&str> = text.lines().collect();
    let mut faults = Faults::new();
    for (index, line) in lines.iter().enumerate() {
        let attribute = line.trim_start().trim_start_matches("#![").trim_start_matches("#[");
        let begins = ["allow(", "expect("].iter().any(|name| attribute.starts_with(name));
        if !begins || !line.trim_start().starts_with('#') {
            continue;
        }
        let end =
            lines[index..].iter().position(|line| line.trim_end().ends_with(")]")).unwrap_or(0);
        if !lines[index..=index + end].iter().any(|line| line.contains("reason = ")) {
            faults.push((index + 1, "a lint is allowed without a reason".to_owned()));
        }
    }
    faults
}

/// Line, name and length of each function; relies on rustfmt's indentation.
fn function_lengths(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut functions = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = line.len() - line.trim_start().len();
        let closing = format!("{}}}", &line[..indent]);
        let is_one_line = line.ends_with(';') || line.ends_with('}');
        let length = if is_one_line {
            1
        } else {
            lines[index..].iter().position(|line| *line == closing).unwrap_or(0) + 1
        };
        functions.push((index + 1, name.to_owned(), length));
    }
    functions
}

fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    loop {
        if let Some(name) = rest.strip_prefix("fn ") {
            return name.split(['(', '<']).next();
        }
        let (word, after) = rest.split_once(' ')?;
        let is_qualifier =
            ["pub", "const", "async", "unsafe"].contains(&word) || word.starts_with("pub(");
        rest = is_qualifier.then_some(after)?;
    }
}

/// A script asks for no host by name: packages come from what the machine itself is set up with.
fn script_faults(text: &str) -> Faults {
    by_line(text, |line| {
        let after = line.split("://").skip(1);
        let names_host =
            after.into_iter().any(|host| host.starts_with(|c: char| c.is_alphanumeric()));
        names_host.then(|| "a URL with a host".to_owned())
    })
}

/// Targets of relative links that do not exist in the folder of the file.
fn markdown_faults(text: &str, folder: &Path) -> Faults {
    by_line(text, |line| {
        line.split("](").skip(1).find_map(|rest| {
            let target = rest.split(')').next()?.split('#').next()?;
            let is_relative =
                !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:");
            (is_relative && !folder.join(target).exists())
                .then(|| format!("a link to {target}, which is not there"))
        })
    })
}

/// Keep a Changelog: `[Unreleased]` first, dated versions, known headings, one line an entry.
fn changelog_faults(text: &str) -> Faults {
    const HEADINGS: [&str; 6] = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
    let mut faults = Faults::new();
    let mut versions = 0;
    for (index, line) in text.lines().enumerate() {
        let fault = if index == 0 {
            (line != "# Changelog").then_some("the first line is `# Changelog`")
        } else if let Some(version) = line.strip_prefix("## ") {
            versions += 1;
            let fits =
                if versions == 1 { version == "[Unreleased]" } else { is_dated_version(version) };
            (!fits).then_some("`[Unreleased]` first, then `[1.2.3] - 2030-12-31`")
        } else if let Some(heading) = line.strip_prefix("### ") {
            (!HEADINGS.contains(&heading)).then_some("not a heading of Keep a Changelog")
        } else {
            let is_entry = line.is_empty() || line.starts_with("- ") || line.starts_with('[');
            (versions > 0 && !is_entry).then_some("an entry is one line that starts with `- `")
        };
        faults.extend(fault.map(|fault| (index + 1, fault.to_owned())));
    }
    if versions == 0 {
        faults.push((1, "no `## [Unreleased]`".to_owned()));
    }
    faults
}

fn is_dated_version(heading: &str) -> bool {
    let Some((version, date)) = heading.split_once(" - ") else { return false };
    let numbers = |text: &str, separator, count| {
        let parts: Vec<&str> = text.split(separator).collect();
        parts.len() == count && parts.iter().all(|part| part.parse::<u16>().is_ok())
    };
    let version = version.strip_prefix('[').and_then(|version| version.strip_suffix(']'));
    version.is_some_and(|version| numbers(version, '.', 3)) && numbers(date, '-', 3)
}

/// The text of every tracked file that is text.
fn texts() -> Vec<(String, String)> {
    let read = |path: &Path| {
        fs::read(repository().join(path)).ok().and_then(|b| String::from_utf8(b).ok())
    };
    let files = tracked_files().into_iter();
    files.filter_map(|path| Some((path.to_str()?.to_owned(), read(&path)?))).collect()
}

fn assert_none(faults: impl IntoIterator<Item = (String, Faults)>) {
    let report: Vec<String> = faults
        .into_iter()
        .flat_map(|(path, faults)| {
            faults.into_iter().map(move |(line, fault)| format!("{path}:{line}: {fault}"))
        })
        .collect();
    assert!(report.is_empty(), "{} faults:\n{}", report.len(), report.join("\n"));
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

#[test]
fn sources_are_tidy() {
    let written = texts().into_iter().filter(|(path, _)| {
        ["rs", "md", "toml", "sh"].iter().any(|kind| has_extension(path, kind))
            || !path.contains('.')
    });
    assert_none(written.map(|(path, text)| {
        let mut faults = any_text_faults(&text);
        if has_extension(&path, "rs") {
            faults.extend(rust_faults(&text));
        }
        if text.starts_with("#!/") {
            faults.extend(script_faults(&text));
        }
        (path, faults)
    }));
}

#[test]
fn documents_are_tidy() {
    let documents = texts().into_iter().filter(|(path, _)| has_extension(path, "md"));
    assert_none(documents.map(|(path, text)| {
        let file = repository().join(&path);
        let mut faults = markdown_faults(&text, file.parent().expect("a file lies in a folder"));
        if path == "CHANGELOG.md" {
            faults.extend(changelog_faults(&text));
        }
        (path, faults)
    }));
}

#[test]
fn nothing_unexpected_lies_at_the_top() {
    let files = tracked_files();
    let top: BTreeSet<_> = files.iter().filter_map(|path| path.iter().next()?.to_str()).collect();
    let strangers: Vec<_> = top.into_iter().filter(|name| !TOP_LEVEL.contains(name)).collect();
    assert!(strangers.is_empty(), "not in the layout of ARCHITECTURE.md: {strangers:?}");
}

/// A file that no `mod` names is never compiled, and its tests never run.
#[test]
fn every_module_is_listed() {
    let texts = texts();
    let roots = ["main.rs", "lib.rs", "tests.rs", "build.rs"];
    // A package may lie deeper than the first folder.
    let is_program = |path: &str| {
        let borders = path.match_indices('/').map(|(at, _)| path.split_at(at + 1));
        borders.into_iter().any(|(folder, inside)| {
            let manifest = format!("{folder}Cargo.toml");
            let text = texts.iter().find(|(path, _)| *path == manifest);
            text.is_some_and(|(_, text)| text.contains(&format!("\"{inside}\"")))
        })
    };
    let mut unlisted = Vec::new();
    for (path, _) in texts.iter().filter(|(path, _)| has_extension(path, "rs")) {
        let parts: Vec<&str> = path.split('/').collect();
        let name = parts[parts.len() - 1];
        let found_by_cargo =
            parts.len() == 3 && ["tests", "examples", "benches"].contains(&parts[1]);
        if roots.contains(&name) || found_by_cargo || is_program(path) {
            continue;
        }
        let module =
            if name == "mod.rs" { parts[parts.len() - 2] } else { name.trim_end_matches(".rs") };
        let package = format!("{}/", parts[0]);
        let listed = texts.iter().any(|(other, text)| {
            other != path && other.starts_with(&package) && lists_module(text, module, name)
        });
        if !listed {
            unlisted.push(path);
        }
    }
    assert!(unlisted.is_empty(), "no `mod` names {unlisted:?}");
}

fn lists_module(text: &str, module: &str, file: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start();
        let declared = line.strip_suffix(';').and_then(|line| line.rsplit_once("mod "));
        declared.is_some_and(|(_, name)| name == module)
            || (line.starts_with("#[path") && line.contains(&format!("{file}\"")))
    })
}

#[test]
fn the_core_and_the_host_forbid_unsafe_code() {
    for root in ["core/src/lib.rs", "host/src/lib.rs"] {
        let text = fs::read_to_string(repository().join(root)).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{root}");
    }
}

#[test]
fn the_rules_find_what_they_are_for() {
    let long = "x".repeat(COMMENT_COLUMNS_MAX + 1);
    let body = "    work();\n".repeat(FUNCTION_LINES_MAX);
    for bad in [
        format!("/// {long}\n"),
        "let a = 1;\t// a\n".to_owned(),
        format!("    #[{}]\n", "ignore"),
        "#[allow(dead_code)]\n".to_owned(),
        "#![allow(\n    dead_code,\n    unused\n)]\n".to_owned(),
        format!("    pub(crate) async fn long<T>() {{\n{body}    }}\n"),
        "\n".repeat(FILE_LINES_MAX + 1),
    ] {
        assert_eq!(rust_faults(&bad).len(), 1, "{bad}");
    }
    let good = "#[ignore = \"slow\"]\n#[allow(\n    dead_code,\n    reason = \"why\"\n)]\nfn short() {\n}\n";
    assert_eq!(rust_faults(good), []);
    for bad in [UNFINISHED[0], MACHINE_PATHS[0]].map(|word| format!("{word}\n")) {
        assert_eq!(any_text_faults(&bad).len(), 1, "{bad}");
    }
    assert_eq!(any_text_faults("a \n").len(), 1);
    assert_eq!(any_text_faults("a").len(), 1);
    assert_eq!(script_faults(&format!("curl https:{}\n", "//example.org")).len(), 1);
    assert_eq!(script_faults("curl \"https://$mirror\"\n"), []);
    assert_eq!(markdown_faults("[a](b.md) [c](Cargo.toml#d)\n", repository()).len(), 1);
    assert!(lists_module("pub(crate) mod tidy;\n", "tidy", "tidy.rs"));
    assert!(lists_module("#[path = \"a_tests.rs\"]\n", "a_tests", "a_tests.rs"));
    assert!(!lists_module("mod tidy_up;\n", "tidy", "tidy.rs"));
}

#[test]
fn the_changelog_has_one_shape() {
    let good = "# Changelog\n\nAs is.\n\n## [Unreleased]\n\n### Added\n\n- A.\n\n## [1.0.0] - 2030-01-31\n";
    assert_eq!(changelog_faults(good), []);
    for (from, to) in [
        ("# Changelog", "Changes"),
        ("[Unreleased]", "[0.9.0]"),
        ("### Added", "### New"),
        ("- A.", "A."),
        ("[1.0.0] - 2030-01-31", "1.0.0"),
        ("2030-01-31", "January"),
    ] {
        assert_eq!(changelog_faults(&good.replace(from, to)).len(), 1, "{from} -> {to}");
    }
}
