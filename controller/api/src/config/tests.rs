use super::*;

const CONTROLLER: &str = r#"
state_dir = "/var/lib/peerpods"
claims_socket = "/run/peerpods/claims.sock"
metrics = "127.0.0.1:0"

[provider]
kind = "local"

[provider.local]
level = "sandbox"
insecure_sandbox = true
image = "/usr/libexec/peerpods-guest"
state_dir = "/var/lib/peerpods/machines"

[class.default]
tee = "sample"
root_of_trust = "insecure"
"#;

fn load_text<T: Configuration>(text: &str, environment: &[(&str, &str)], sets: &[&str]) -> Result<T, ConfigError> {
    let environment: Vec<_> = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let sets: Vec<_> = sets.iter().map(|s| (*s).to_owned()).collect();
    load_from(text, "controller.toml", "PEERPODS_", &environment, &sets)
}

fn controller(text: &str, environment: &[(&str, &str)], sets: &[&str]) -> Result<ControllerConfig, ConfigError> {
    load_text(text, environment, sets)
}

fn message(result: Result<ControllerConfig, ConfigError>) -> String {
    result.expect_err("must not load").to_string()
}

#[test]
fn later_layers_win() {
    let config = controller(CONTROLLER, &[], &[]).expect("loads");
    assert_eq!(config.log, LogFormat::Human);
    assert_eq!(config.metrics.map(|a| a.port()), Some(0));

    let environment = [("PEERPODS_METRICS", "127.0.0.1:1"), ("PEERPODS_LOG", "json"), ("PEERPODS_PROVIDER__LOCAL__SCRATCH_MIB", "7")];
    let config = controller(CONTROLLER, &environment, &["metrics=127.0.0.1:2", "provider.local.bridge=123"]).expect("loads");
    assert_eq!(config.metrics.map(|a| a.port()), Some(2), "--set wins over the environment");
    assert_eq!(config.log, LogFormat::Json, "the environment wins over the file");
    let local = config.provider.local.expect("kept");
    assert_eq!((local.scratch_mib.0, local.bridge.as_str()), (7, "123"), "text is read as the field's type");
}

#[test]
fn new_tables_can_be_made_by_set() {
    let sets = ["class.big.tee=snp", "class.big.instance_types=[\"a\", \"b\"]"];
    let config = controller(CONTROLLER, &[], &sets).expect("loads");
    assert_eq!(config.class.len(), 2);
    assert_eq!(config.class.values().next().map(|c| c.instance_types.len()), Some(2));
}

#[test]
fn unknown_keys_are_named_with_what_is_allowed() {
    let text = format!("statedir = \"/x\"\n{CONTROLLER}");
    assert_eq!(
        message(controller(&text, &[], &[])),
        "statedir (controller.toml): unknown key; allowed here: state_dir, claims_socket, admin_socket, metrics, log, provider, class"
    );
    let found = message(controller(CONTROLLER, &[("PEERPODS_PROVIDER__LOCAL__LEVLE", "qemu")], &[]));
    assert!(found.starts_with("provider.local.levle (PEERPODS_PROVIDER__LOCAL__LEVLE): unknown key; allowed here: level,"), "{found}");
    let found = message(controller(CONTROLLER, &[], &["class.default.tea=snp"]));
    assert!(found.starts_with("class.default.tea (--set): unknown key"), "{found}");
}

#[test]
fn bad_values_are_named_with_what_is_allowed() {
    let cases: [(&str, &str); 8] = [
        ("log=xml", "log (--set): \"xml\" is not allowed; allowed: human, json"),
        ("provider.local.insecure_sandbox=yes", "provider.local.insecure_sandbox (--set): is not true or false"),
        ("provider.local.scratch_mib=8G", "provider.local.scratch_mib (--set): is not a whole number"),
        ("metrics=8080", "metrics (--set): invalid socket address syntax"),
        ("provider.kind=cloudy", "provider.kind (--set): \"cloudy\" is not allowed; allowed: local, aws"),
        ("class.default.tee=sgx", "class.default.tee (--set): \"sgx\" is not allowed; allowed: snp, snp-tpm, tdx, tpm, sample"),
        (
            "class.default.root_of_trust=hardware",
            "class.default (controller.toml): tee = \"sample\" protects nothing and needs root_of_trust = \"insecure\"",
        ),
        ("provider.local.scratch_mib=-1", "provider.local.scratch_mib (--set): invalid value: integer `-1`, expected u32"),
    ];
    for (set, expected) in cases {
        assert_eq!(message(controller(CONTROLLER, &[], &[set])), expected);
    }
    let found = message(controller(&format!("log = \"human\"\n{CONTROLLER}"), &[], &["log.level=1"]));
    assert_eq!(found, "log (--set): is a value and has no key \"level\"");
}

#[test]
fn missing_keys_and_tables_are_named() {
    let without = CONTROLLER.replace("state_dir = \"/var/lib/peerpods\"\n", "");
    assert_eq!(message(controller(&without, &[], &[])), "state_dir (controller.toml): is required and missing");
    let without = &CONTROLLER[..CONTROLLER.find("[provider.local]").expect("is there")];
    let text = format!("{without}\n[class.default]\ntee = \"snp\"\n");
    assert_eq!(message(controller(&text, &[], &[])), "provider.local (controller.toml): is required for provider.kind = \"local\"");
    let found = message(controller(CONTROLLER, &[], &["provider.local.insecure_sandbox=false"]));
    assert!(found.starts_with("provider.local.insecure_sandbox (--set): must be true for level = \"sandbox\""), "{found}");
}

#[test]
fn syntax_errors_give_the_line_and_not_its_text() {
    let found = message(controller("a = 1\npassword = hunter2\n", &[], &[]));
    assert!(found.starts_with("controller.toml is not TOML: line 2"), "{found}");
    assert!(!found.contains("hunter2"), "{found}");
    assert_eq!(message(controller(CONTROLLER, &[], &["novalue"])), "--set \"novalue\" is not key.path=value");
}

#[test]
fn shown_configuration_loads_again() {
    let config = controller(CONTROLLER, &[], &["class.big.tee=tdx"]).expect("loads");
    let text = show(&config).expect("serialises");
    assert_eq!(controller(&text, &[], &[]).expect("loads again"), config, "{text}");
}

#[test]
fn socket_path_that_the_kernel_would_refuse_is_refused() {
    let long = format!("claims_socket=/{}", "x".repeat(103));
    assert_eq!(message(controller(CONTROLLER, &[], &[&long])), "claims_socket (--set): a socket's path has 1 to 103 bytes, this one 104");
}

#[derive(Debug, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct WithSecret {
    password: Secret,
}

impl Configuration for WithSecret {}

#[test]
fn secrets_are_hidden_when_shown() {
    let config: WithSecret = load_text("password = \"hunter2\"", &[], &[]).expect("loads");
    assert_eq!(config.password.expose(), "hunter2");
    assert_eq!(show(&config).expect("serialises"), "password = \"<hidden>\"\n");
    assert_eq!(format!("{config:?}"), "WithSecret { password: <hidden> }");
}

#[test]
fn file_and_reserved_variables_are_read_from_outside() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("controller.toml");
    assert!(matches!(load::<ControllerConfig>(&path, "PEERPODS_", &[]), Err(ConfigError::ReadFile { .. })));
    std::fs::write(&path, CONTROLLER).expect("written");
    load::<ControllerConfig>(&path, "PEERPODS_", &[]).expect("loads, whatever the test runner has set");
}
