//! Policies as agents and brokers evaluate them: in Rego, against requests and claims.

mod agent_policy;
mod broker_policies;
mod command;
mod recorded;
mod requests;

use std::path::PathBuf;

use serde_json::Value;

use super::*;

const POD: &str = include_str!("tests/pod.yaml");
const WEB: &str = include_str!("tests/web.json");
const DIGEST: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";
const SANDBOX: &str = "42641dcb03ca84fbc126f78a1a128161b5fa494d0e114f5816a4dbb8aac49496";
const CONTAINER: &str = "22bace78a91cda605a8df5dc4e4be497bd38df8c633a49b0011626ad3b9ee649";

/// Compares with a file, or writes it where the environment says so.
fn golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/policy/tests").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{name}: UPDATE_GOLDEN=1 writes it anew");
}

fn agent_rego() -> String {
    rego_of(POD)
}

fn rego_of(pod: &str) -> String {
    agent::render(&containers::policy_data(&Workload::parse(pod).unwrap(), &additions()).unwrap().data)
}

fn additions() -> Additions {
    Additions {
        image_configs: [("web".to_owned(), ImageConfig::parse(WEB).unwrap())].into(),
        exec: vec![vec!["ls".to_owned(), "/srv".to_owned()]],
        forwarded_ports: std::num::NonZeroU16::new(8080).into_iter().collect(),
        ..Additions::default()
    }
}

fn changed(request: &Value, pointer: &str, value: &Value) -> Value {
    let mut request = request.clone();
    *request.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value.clone();
    request
}
