//! The tree itself: file budgets, the visible top level, the README's code map.

use std::path::Path;

use crate::binaries::{cargo, root};
use crate::stage::output;

/// Lines before a file's tests above which its header must say why it is one thing.
const EXPLAIN_ABOVE: usize = 400;
/// Lines before a file's tests above which it is split.
const SPLIT_ABOVE: usize = 600;
/// The visible top level; files whose names begin with a dot are free.
const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "README.md",
    "agent-proxy",
    "cloud-providers",
    "clippy.toml",
    "controller",
    "deploy",
    "pod-vm-image",
    "rustfmt.toml",
    "tests",
];
const MAP_BEGIN: &str = "<!-- code map: written by `cargo xtask check --write` -->";
const MAP_END: &str = "<!-- end of code map -->";

/// Checks everything; the error lists every violation.
pub(super) fn check() -> Result<(), String> {
    let files = output(std::process::Command::new("git").current_dir(root()).args(["ls-files"]))?;
    let mut faults = Vec::new();
    for file in files.lines() {
        let top = file.split('/').next().unwrap_or(file);
        if !top.starts_with('.') && !TOP_LEVEL.contains(&top) {
            faults.push(format!("{file}: {top} is not part of the visible top level"));
        }
        if Path::new(file).extension().is_some_and(|e| e == "rs") {
            faults.extend(source_faults(file));
        }
    }
    if read_readme()? != with_code_map(&read_readme()?)? {
        faults.push("README.md: the code map is stale; run `cargo xtask check --write`".to_owned());
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n  ")) }
}

/// Writes the code map into the README.
pub(super) fn write_code_map() -> Result<(), String> {
    let text = with_code_map(&read_readme()?)?;
    std::fs::write(root().join("README.md"), text).map_err(|e| format!("README.md: {e}"))
}

fn source_faults(file: &str) -> Vec<String> {
    let Ok(text) = std::fs::read_to_string(root().join(file)) else { return Vec::new() };
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    let is_test = file.contains("/tests/") || file.ends_with("tests.rs");
    let mut faults = Vec::new();
    if !is_test && lines > SPLIT_ABOVE {
        faults.push(format!("{file}: {lines} lines before its tests; split it"));
    } else if !is_test && lines > EXPLAIN_ABOVE && !text.contains("One file because") {
        faults.push(format!("{file}: {lines} lines before its tests; say in its header why (\"One file because …\") or split it"));
    }
    for stub in ["todo!(", "unimplemented!(", "#[ignore"] {
        if text.contains(stub) && !file.starts_with("tests/xtask/") {
            faults.push(format!("{file}: {stub} is a stub"));
        }
    }
    faults
}

fn read_readme() -> Result<String, String> {
    std::fs::read_to_string(root().join("README.md")).map_err(|e| format!("README.md: {e}"))
}

/// The README with its code map made from the crates' descriptions.
fn with_code_map(readme: &str) -> Result<String, String> {
    let (before, rest) = readme.split_once(MAP_BEGIN).ok_or_else(|| format!("README.md has no line {MAP_BEGIN}"))?;
    let (_, after) = rest.split_once(MAP_END).ok_or_else(|| format!("README.md has no line {MAP_END}"))?;
    let metadata = output(cargo().args(["metadata", "--format-version=1", "--no-deps", "--locked"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).map_err(|e| format!("cargo metadata: {e}"))?;
    let mut rows: Vec<String> = Vec::new();
    for package in metadata["packages"].as_array().ok_or("cargo metadata lists no packages")? {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or(""));
        let folder = manifest.parent().and_then(|p| p.strip_prefix(root()).ok()).unwrap_or(Path::new("?"));
        let description = package["description"].as_str().ok_or_else(|| format!("{}: no description", package["name"]))?;
        rows.push(format!("| `{}` | {description} |", folder.display()));
    }
    rows.sort();
    Ok(format!("{before}{MAP_BEGIN}\n| folder | what it is |\n|---|---|\n{}\n{MAP_END}{after}", rows.join("\n")))
}
