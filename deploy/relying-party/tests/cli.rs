//! The binary, as a person uses it: init, serve, set, a crash, serve again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use peerpods_key_broker::{KeyBroker, KeyBrokerConfig};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use common::Sample;

const DEADLINE: Duration = Duration::from_secs(60);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerpods-relying-party"));
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs to its end; gives standard output, or else standard error.
async fn run(arguments: &[&str]) -> Result<String, String> {
    let output = timeout(DEADLINE, command(arguments).output()).await.expect("the command ends").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// Serves on a free port; gives the URL.
async fn serve(state: &str) -> (Child, String) {
    let mut child = command(&["serve", "--state", state, "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(DEADLINE, lines.next_line()).await.expect("it says where it listens").unwrap().unwrap();
    (child, line.strip_prefix("listening on ").unwrap().to_owned())
}

async fn get(state: &Path, url: &str) -> Vec<u8> {
    let certificate = std::fs::read_to_string(state.join("tls-certificate.pem")).unwrap();
    let config = KeyBrokerConfig { certificate_pem: Some(certificate), ..KeyBrokerConfig::new(url) };
    let client = KeyBroker::new(config, Arc::new(Sample)).unwrap();
    client.resource(&"kbs:///default/key/1".parse().unwrap()).await.unwrap().to_vec()
}

#[tokio::test]
async fn what_was_set_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (state, key, policy) = (path("state"), path("key"), path("policy.rego"));
    std::fs::write(&key, b"a key").unwrap();
    std::fs::write(&policy, "package policy\nallow if data.plugin == \"resource\"\n").unwrap();
    assert!(run(&["init", "--state", &state]).await.unwrap().contains("tls-certificate.pem"));
    assert!(run(&["init", "--state", &state]).await.unwrap_err().contains("is a state folder already"));

    let (mut broker, url) = serve(&state).await;
    let target = ["--state", &state, "--url", &url];
    let set = async |subcommand: &str, rest: &[&str]| run(&[&[subcommand][..], &target, rest].concat()).await;
    set("set-resource", &["default/key/1", &key]).await.unwrap();
    set("set-resource-policy", &[&policy]).await.unwrap();
    set("set-reference-value", &["svn", "[\"1\"]"]).await.unwrap();
    assert!(set("set-reference-value", &["svn", "no JSON"]).await.unwrap_err().contains("no JSON"));
    assert!(set("delete-resource", &["default/../1"]).await.unwrap_err().contains("cannot use"));
    assert!(set("set-attestation-policy", &[&key]).await.unwrap_err().contains("Set Attestation Policy failed"));
    assert_eq!(get(Path::new(&state), &url).await, b"a key");
    assert!(run(&["serve", "--state", &state, "--listen", "127.0.0.1:0"]).await.unwrap_err().contains("in use by another process"));

    broker.kill().await.unwrap();
    let (_broker, url) = serve(&state).await;
    assert_eq!(get(Path::new(&state), &url).await, b"a key");
    // With a token in place of the key.
    let token = run(&["admin-token", "--state", &state]).await.unwrap();
    let certificate = path("state/tls-certificate.pem");
    let arguments = ["delete-resource", "--url", &url, "--token", token.trim(), "--certificate", &certificate, "kbs:///default/key/1"];
    run(&arguments).await.unwrap();
    assert!(run(&arguments).await.unwrap_err().contains("PluginInternalError"));
}

#[tokio::test]
async fn help_says_what_there_is() {
    let help = run(&["--help"]).await.unwrap();
    for name in ["init", "serve", "admin-token", "set-resource", "set-resource-policy", "set-attestation-policy", "set-reference-value"] {
        assert!(help.contains(name), "{name}");
    }
    assert!(run(&["serve"]).await.unwrap_err().contains("--state"));
    assert!(run(&["serve", "--state", "/nonexistent"]).await.unwrap_err().contains("peerpods-relying-party init"));
}
