//! Who may depend on whom: `.ci/dependencies` against `cargo metadata`, and licences of everything we link.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::binaries::{cargo, root};
use crate::stage::output;

/// Licences that Apache-2.0 software may carry; one of them must satisfy each crate's expression.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates whose licence was read by a person, and what it is.
const READ_BY_A_PERSON: &[(&str, &str)] = &[
    ("pathrs", "MPL-2.0: asks for its own files' sources only, which are public and unchanged"),
    ("rust-criu", "Apache-2.0 by its LICENSE file; its manifest has no licence field"),
];

/// Crates that must not be in the tree at all, and why.
const BANNED: &[(&str, &str)] = &[
    ("ring", "TLS is rustls on aws-lc-rs everywhere"),
    ("openssl", "TLS is rustls on aws-lc-rs everywhere"),
    ("openssl-sys", "TLS is rustls on aws-lc-rs everywhere"),
    ("native-tls", "TLS is rustls on aws-lc-rs everywhere"),
];

/// Names of crates that say nothing about what is in them.
const VAGUE: &[&str] = &["common", "util", "utils", "types", "helpers"];

/// Runs all dependency checks; the error lists every violation.
pub(super) fn check() -> Result<(), String> {
    let text = output(cargo().args(["metadata", "--format-version=1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]))?;
    let metadata: Value = serde_json::from_str(&text).map_err(|e| format!("cargo metadata: {e}"))?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let rules_path = root().join(".ci/dependencies");
    let rules = std::fs::read_to_string(&rules_path).map_err(|e| format!("{}: {e}", rules_path.display()))?;
    let rules = parse_rules(&rules)?;

    let mut faults = arrows(packages, &rules);
    let linked = linked()?;
    faults.extend(licences(packages.iter().filter(|p| linked.contains(name_of(p)))));
    for package in packages {
        let name = name_of(package);
        if !linked.contains(name) {
            continue;
        }
        faults.extend(BANNED.iter().filter(|(banned, _)| *banned == name).map(|(banned, why)| format!("{banned} is in the tree: {why}")));
        if package["source"].is_null() && VAGUE.iter().any(|vague| name.rsplit('-').next() == Some(vague)) {
            faults.push(format!("crate {name}: the name says nothing"));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n  ")) }
}

/// `crate: dependency dependency …`, one crate a line; `*` allows every workspace crate; `#` begins a comment.
fn parse_rules(text: &str) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim()).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let (name, allowed) = line.split_once(':').ok_or_else(|| format!(".ci/dependencies: {line:?} has no colon"))?;
            Ok((name.trim().to_owned(), allowed.split_whitespace().map(str::to_owned).collect()))
        })
        .collect()
}

/// Every dependency between workspace crates that no rule allows, every rule that nobody uses, and every crate without a rule.
fn arrows(packages: &[Value], rules: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let ours: BTreeSet<&str> = packages.iter().filter(|p| p["source"].is_null()).map(name_of).collect();
    let mut faults = Vec::new();
    for package in packages.iter().filter(|p| p["source"].is_null()) {
        let name = name_of(package);
        let Some(allowed) = rules.get(name) else {
            faults.push(format!("crate {name} has no line in .ci/dependencies"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().map_or(&[][..], Vec::as_slice);
        let is_used = |to: &str| dependencies.iter().any(|d| name_of(d) == to && d["kind"].as_str() != Some("dev"));
        let unused = allowed.iter().filter(|to| *to != "*" && !is_used(to));
        faults.extend(unused.map(|to| format!("{name} does not depend on {to}: take it off its line in .ci/dependencies")));
        for dependency in dependencies {
            let to = name_of(dependency);
            let is_dev = dependency["kind"].as_str() == Some("dev");
            if ours.contains(to) && !is_dev && !allowed.contains(to) && !allowed.contains("*") {
                faults.push(format!("{name} may not depend on {to} (.ci/dependencies)"));
            }
        }
    }
    faults
}

/// Names of what is really compiled. Metadata and the lock file also list what a disabled optional feature would bring.
fn linked() -> Result<BTreeSet<String>, String> {
    let tree = output(cargo().args(["tree", "--locked", "--workspace", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]))?;
    Ok(tree.lines().filter_map(|line| line.split(' ').next()).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn licences<'a>(packages: impl Iterator<Item = &'a Value>) -> Vec<String> {
    let is_allowed = |expression: &str| {
        expression
            .replace('/', " OR ")
            .replace(['(', ')'], " ")
            .split(" OR ")
            .any(|choice| choice.split(" AND ").all(|one| LICENCES.contains(&one.trim())))
    };
    packages
        .filter(|p| READ_BY_A_PERSON.iter().all(|(name, _)| *name != name_of(p)))
        .filter(|p| !p["license"].as_str().is_some_and(is_allowed))
        .map(|p| format!("{} {}: licence {} is not on the list", name_of(p), p["version"], p["license"]))
        .collect()
}

fn name_of(package: &Value) -> &str {
    package["name"].as_str().unwrap_or("")
}
