//! The command with its files.

use super::*;

#[test]
fn files_are_written_and_initdata_must_have_the_policy() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (pod, config) = (file("pod.yaml", POD), file("web.json", WEB));
    let measurements = file("m.json", r#"{"svn":["1"]}"#);
    let run = |arguments: &[&str]| {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(subcommand)]
            policy: Policy,
        }
        let cli = <Cli as clap::Parser>::try_parse_from([&["policy"][..], arguments].concat()).map_err(|error| error.to_string())?;
        run(&cli.policy).map_err(|error| error.to_string())
    };
    let config = format!("web={config}");
    let rego =
        run(&["generate", "--pod", &pod, "--image-config", &config, "--allow-exec", "ls /srv", "--allow-port-forward", "8080"]).unwrap();
    assert_eq!(rego, agent_rego());
    let document = |rego: &str| {
        initdata::Document::new(initdata::HashAlgorithm::Sha256, [("policy.rego".to_owned(), rego.to_owned())].into()).unwrap()
    };
    let initdata = file("i.toml", document(&rego).text());
    let out = folder.path().join("out");
    let all = |initdata: &str| {
        run(&[
            "generate",
            "--pod",
            &pod,
            "--image-config",
            &config,
            "--allow-exec",
            "[\"ls\",\"/srv\"]",
            "--allow-port-forward",
            "8080",
            "--tee",
            "sample",
            "--measurements",
            &measurements,
            "--initdata",
            initdata,
            "--resource",
            "default/key/1",
            "--out",
            out.to_str().unwrap(),
        ])
    };
    let text = all(&initdata).unwrap();
    assert!(text.contains("set-sample-reference-value sample_svn 1"), "{text}");
    for name in ["policy.rego", "attestation-policy.rego", "resource-policy.rego", "reference-values.json"] {
        assert!(out.join(name).exists() && text.contains(name), "{name}");
    }
    let other = file("other.toml", document("package agent_policy\n").text());
    assert!(all(&other).unwrap_err().contains("another policy.rego"));
    assert!(run(&["generate"]).unwrap_err().contains("--pod"));
    assert!(run(&["generate", "--tee", "tpm"]).unwrap_err().contains("--measurements"));
    assert!(run(&["generate", "--pod", &pod, "--digest", "web=sha256:1"]).unwrap_err().contains("CONTAINER=sha256:"));
    let refused = run(&["generate", "--tee", "tdx", "--accept-tcb-status", "Revoked"]).unwrap_err();
    assert!(refused.contains("OutOfDateConfigurationNeeded") && !refused.contains("Revoked,"), "{refused}");
    let refused = run(&["generate", "--pod", &pod, "--accept-tcb-status", "OutOfDate"]).unwrap_err();
    assert!(refused.contains("--tee"), "{refused}");
}
