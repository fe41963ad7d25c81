//! The program itself: what it says about its configuration.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn controller(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerpods-controller"));
    command.args(arguments).env_clear().output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/compat/config/v1/controller.toml")
}

#[test]
fn valid_configuration_is_said_to_be_valid() {
    let file = fixture();
    let out = controller(&["config", "check", "--config", file.to_str().expect("UTF-8")]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).ends_with("controller.toml is valid\n"), "{}", text(&out.stdout));
}

#[test]
fn faults_of_the_configuration_name_the_key_and_what_is_allowed() {
    let file = fixture();
    let file = file.to_str().expect("UTF-8");
    let cases = [
        ("log=xml", "log (--set): \"xml\" is not allowed; allowed: human, json"),
        ("lag=human", "lag (--set): unknown key; allowed here: state_dir"),
        ("class.default.root_of_trust=hardware", "needs root_of_trust = \"insecure\""),
        ("provider.local.level=sandbox", "provider.local.insecure_sandbox"),
    ];
    for (set, expected) in cases {
        for command in [["config", "check"].as_slice(), &["run"], &["cleanup"]] {
            let out = controller(&[command, &["--config", file, "--set", set]].concat());
            assert_eq!(out.status.code(), Some(1), "{set}");
            assert!(text(&out.stderr).contains(expected), "{}", text(&out.stderr));
        }
    }
    let out = controller(&["config", "check", "--config", "/nonexistent.toml"]);
    assert!(text(&out.stderr).contains("cannot read configuration /nonexistent.toml: No such file"), "{}", text(&out.stderr));
}

#[test]
fn shown_configuration_is_the_resulting_one() {
    let file = fixture();
    let out = controller(&["config", "show", "--config", file.to_str().expect("UTF-8"), "--set", "provider.local.bridge=br7"]);
    assert!(out.status.success() && text(&out.stdout).contains("bridge = \"br7\""), "{}", text(&out.stdout));
}

#[test]
fn help_shows_a_whole_configuration() {
    let out = controller(&["--help"]);
    let help = text(&out.stdout);
    for word in ["run", "cleanup", "config", "[provider.local]", "PEERPODS_PROVIDER__LOCAL__LEVEL", "RUST_LOG"] {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
    let example: String = help
        .lines()
        .skip_while(|line| !line.contains("state_dir ="))
        .take_while(|line| !line.contains("Any key"))
        .collect::<Vec<_>>()
        .join("\n");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("controller.toml");
    std::fs::write(&file, example).expect("written");
    let out = controller(&["config", "check", "--config", file.to_str().expect("UTF-8")]);
    assert!(out.status.success(), "the example must be valid: {}", text(&out.stderr));
}

#[test]
fn machine_helper_is_a_role_of_its_own() {
    let out = controller(&["machine-helper", "nonsense"]);
    assert!(!out.status.success());
    assert!(!text(&out.stderr).contains("Usage"), "it is no command for people: {}", text(&out.stderr));
}

#[test]
fn the_settings_reference_is_what_the_program_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../SETTINGS.md");
    let said = text(&controller(&["config", "reference"]).stdout);
    assert!(said.contains("| `instance_types` | list of text |") && said.contains("`[provider.aws.root_volume]`"), "{said}");
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == said, "controller/SETTINGS.md is old: peerpods-controller config reference > controller/SETTINGS.md");
}
