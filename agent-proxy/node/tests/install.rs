//! `peerpods-node install` and `uninstall` on files: shown, idempotent, undone to the byte, and killed at any line.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use peerpods_node::install::{Change, InstallRecord};
use tempfile::TempDir;

const V2: &str = "# Ours.\nversion = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  default_runtime_name = 'runc' # of old\n";
const V3: &str = "version = 3\n\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'overlayfs'\n  use_local_image_pull = false\n";

/// A node's folders.
struct Node {
    folder: TempDir,
}

impl Node {
    fn new(containerd: Option<&str>) -> Self {
        let node = Self { folder: tempfile::tempdir().unwrap() };
        let text = "node = \"n\"\nstate_dir = \"/run/n\"\npods_dir = \"/run/p\"\nhypervisor_socket = \"/run/h.sock\"\n\
                    claims_socket = \"/run/c.sock\"\n[snapshotter]\nsocket = \"/run/s.sock\"\nstate_dir = \"/var/lib/s\"\n";
        std::fs::write(node.path("node.toml"), text).unwrap();
        if let Some(text) = containerd {
            node.write(text);
        }
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self) -> Option<String> {
        std::fs::read_to_string(self.path("config.toml")).ok()
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path("config.toml"), text).unwrap();
    }

    fn record(&self) -> Option<Vec<u8>> {
        std::fs::read(self.path("state/install.json")).ok()
    }

    /// What it says, and whether it succeeded.
    fn run(&self, command: &str, more: &[&str]) -> (String, bool) {
        let mut run = Command::new(env!("CARGO_BIN_EXE_peerpods-node"));
        run.arg(command).arg("--containerd-config").arg(self.path("config.toml")).arg("--state-dir").arg(self.path("state"));
        if command == "install" {
            run.arg("--config").arg(self.path("node.toml"));
        }
        // No containerd of the machine has a say.
        let output = run.args(more).env("PATH", "/nowhere").output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (String::from_utf8(text).unwrap(), output.status.success())
    }

    fn install(&self) -> String {
        let (text, is_good) = self.run("install", &[]);
        assert!(is_good, "{text}");
        text
    }

    fn uninstall(&self) -> String {
        let (text, is_good) = self.run("uninstall", &[]);
        assert!(is_good, "{text}");
        text
    }

    /// A program that says that it is that containerd.
    fn containerd(&self, version: &str) -> String {
        let program = self.path("containerd");
        std::fs::write(&program, format!("#!/bin/sh\necho 'containerd example.org/containerd {version} 0'\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        program.display().to_string()
    }
}

#[test]
fn installing_shows_the_change_and_uninstalling_restores_every_byte() {
    for before in [V2, V3] {
        let node = Node::new(Some(before));
        std::fs::set_permissions(node.path("config.toml"), std::fs::Permissions::from_mode(0o640)).unwrap();
        let said = node.install();
        assert!(said.contains("+runtime_type = \"io.containerd.peerpods.v2\""), "{said}");
        assert!(said.contains("systemctl restart containerd") && said.contains("kind: RuntimeClass"), "{said}");
        assert!(said.contains("warning: containerd-shim-peerpods-v2"), "{said}");
        let installed = node.config().unwrap();
        assert!(node.install().contains("has everything already"));
        assert_eq!(node.config().unwrap(), installed);
        assert!(node.uninstall().contains("byte for byte"));
        assert_eq!(node.config().unwrap(), before);
        assert_eq!(std::fs::metadata(node.path("config.toml")).unwrap().permissions().mode() & 0o7777, 0o640);
        assert!(!node.path("state").exists());
        assert!(node.uninstall().contains("Nothing is installed"));
    }
}

#[test]
fn file_that_was_not_there_is_made_for_the_containerd_and_removed_again() {
    for (version, line) in [("1.7.24~ds1", "version = 2\n"), ("v2.1.0", "version = 3\n")] {
        let node = Node::new(None);
        let (said, is_good) = node.run("install", &[]);
        assert!(!is_good && said.contains("--containerd"), "{said}");
        let (said, is_good) = node.run("install", &["--containerd", &node.containerd(version)]);
        assert!(is_good, "{said}");
        assert!(node.config().unwrap().starts_with(line), "{:?}", node.config());
        assert!(node.uninstall().contains("removed"));
        assert_eq!(node.config(), None);
    }
}

#[test]
fn what_somebody_else_changed_since_stays() {
    let node = Node::new(Some(V2));
    node.install();
    let edited = format!("{}\n[debug]\nlevel = \"debug\" # for a day\n", node.config().unwrap());
    node.write(&edited);
    assert!(node.uninstall().contains("only our entries"));
    let left = node.config().unwrap();
    assert!(left.starts_with(V2) && left.contains("# for a day") && !left.contains("peerpods"), "{left}");
}

#[test]
fn what_somebody_else_changed_before_an_upgrade_stays() {
    let node = Node::new(Some(V2));
    node.install();
    node.write(&format!("{}\n[debug]\nlevel = \"debug\"\n", node.config().unwrap()));
    let (said, is_good) = node.run("install", &["--shim-config", "/etc/shim.toml"]);
    assert!(is_good && said.contains("+ConfigPath = \"/etc/shim.toml\""), "{said}");
    node.uninstall();
    let left = node.config().unwrap();
    assert!(left.starts_with(V2) && left.contains("[debug]") && !left.contains("peerpods"), "{left}");
}

#[test]
fn upgrade_still_restores_every_byte() {
    let node = Node::new(Some(V3));
    node.install();
    let (said, is_good) = node.run("install", &["--shim-config", "/etc/shim.toml"]);
    assert!(is_good, "{said}");
    node.uninstall();
    assert_eq!(node.config().unwrap(), V3);
}

#[test]
fn dry_run_shows_and_writes_nothing() {
    let node = Node::new(Some(V2));
    let (said, is_good) = node.run("install", &["--dry-run"]);
    assert!(is_good && said.contains("+runtime_type") && said.contains("Nothing was changed"), "{said}");
    assert_eq!((node.config().as_deref(), node.record()), (Some(V2), None));
    node.install();
    let installed = node.config();
    let (said, is_good) = node.run("uninstall", &["--dry-run"]);
    assert!(is_good && said.contains("-runtime_type"), "{said}");
    assert_eq!(node.config(), installed);
    assert!(node.record().is_some());
}

#[test]
fn entries_of_others_are_refused_unless_replaced_and_come_back() {
    let others = format!("{V2}\n[proxy_plugins.peerpods]\ntype = \"snapshot\"\naddress = \"/run/other.sock\"\n");
    let node = Node::new(Some(&others));
    let (said, is_good) = node.run("install", &[]);
    assert!(!is_good && said.contains("proxy_plugins.peerpods is there") && said.contains("--replace"), "{said}");
    assert_eq!((node.config().as_deref(), node.record()), (Some(others.as_str()), None));
    assert!(node.run("install", &["--replace"]).1);
    node.uninstall();
    assert_eq!(node.config().unwrap(), others);
}

#[test]
fn link_to_the_configuration_stays_one() {
    let node = Node::new(None);
    std::fs::write(node.path("real.toml"), V2).unwrap();
    std::os::unix::fs::symlink("real.toml", node.path("config.toml")).unwrap();
    node.install();
    assert!(std::fs::symlink_metadata(node.path("config.toml")).unwrap().is_symlink());
    assert!(std::fs::read_to_string(node.path("real.toml")).unwrap().contains("peerpods"));
    node.uninstall();
    assert_eq!(std::fs::read_to_string(node.path("real.toml")).unwrap(), V2);
}

/// A run that was killed leaves one of these behind: what was written before the kill, and nothing of what comes after.
#[test]
fn killed_runs_are_finished_or_undone_by_the_next_one() {
    let made = Node::new(Some(V2));
    made.install();
    let (installed, first) = (made.config().unwrap(), made.record().unwrap());
    assert!(made.run("install", &["--shim-config", "/etc/shim.toml"]).1);
    let (upgraded, second) = (made.config().unwrap(), made.record().unwrap());
    let states = [
        ("killed before the record", V2, None),
        ("killed before the change", V2, Some(&first)),
        ("killed after the change", installed.as_str(), Some(&first)),
        ("killed before the change of an upgrade", installed.as_str(), Some(&second)),
        ("killed after the change of an upgrade", upgraded.as_str(), Some(&second)),
        ("killed after the file was restored", V2, Some(&second)),
    ];
    for (what, config, record) in states {
        for repeat in [false, true] {
            let node = Node::new(Some(config));
            std::fs::create_dir(node.path("state")).unwrap();
            std::fs::write(node.path("state/config.toml.before"), V2).unwrap();
            if let Some(record) = record {
                let text = String::from_utf8(record.clone()).unwrap();
                let text = text.replace(&made.path("config.toml").display().to_string(), &node.path("config.toml").display().to_string());
                std::fs::write(node.path("state/install.json"), text).unwrap();
            }
            if repeat || record.is_none() {
                node.install();
                assert_eq!(node.config().unwrap(), installed, "{what}");
            }
            node.uninstall();
            assert_eq!(node.config().unwrap(), V2, "{what}");
            assert!(!node.path("state").exists(), "{what}");
        }
    }
}

#[test]
fn what_is_missing_or_wrong_is_named_with_the_next_step() {
    let node = Node::new(Some(V2));
    std::fs::write(
        node.path("node.toml"),
        "node = \"n\"\nstate_dir = \"/n\"\npods_dir = \"/p\"\nhypervisor_socket = \"/h\"\nclaims_socket = \"/c\"\n",
    )
    .unwrap();
    let (said, is_good) = node.run("install", &[]);
    assert!(!is_good && said.contains("[snapshotter]"), "{said}");
    let node = Node::new(Some("root = '/x'\n"));
    let (said, is_good) = node.run("install", &[]);
    assert!(!is_good && said.contains("config migrate"), "{said}");
    let node = Node::new(Some(V2));
    std::fs::create_dir(node.path("state")).unwrap();
    std::fs::write(node.path("state/install.json"), "{ \"version\": 2 }").unwrap();
    for command in ["install", "uninstall"] {
        let (said, is_good) = node.run(command, &[]);
        assert!(!is_good && said.contains("version 2"), "{said}");
    }
    std::fs::write(node.path("state/install.json"), "{ \"versi").unwrap();
    assert!(node.run("uninstall", &[]).0.contains("damaged"));
    assert_eq!(node.config().unwrap(), V2);
    let (said, is_good) = node.run("install", &["--handler", "Peer_Pods"]);
    assert!(!is_good && said.contains("lower-case"), "{said}");
}

#[test]
fn printed_entries_are_a_whole_file() {
    let node = Node::new(None);
    for (version, cri) in [("2", "io.containerd.grpc.v1.cri"), ("3", "io.containerd.cri.v1.runtime")] {
        let (said, is_good) = node.run("install", &["--print", version]);
        assert!(is_good && said.contains(&format!("version = {version}\n")) && said.contains(cri), "{said}");
        said.parse::<toml_edit::DocumentMut>().unwrap();
    }
    assert_eq!((node.config(), node.record()), (None, None));
}

#[test]
fn record_of_version_1_is_read_and_written_as_ever() {
    let golden = include_str!("../../../tests/compat/install/v1/install.json");
    let images = ["plugins", "io.containerd.cri.v1.images"].map(str::to_owned).to_vec();
    let switch = [images.clone(), vec!["use_local_image_pull".to_owned()]].concat();
    let record = InstallRecord {
        version: 1,
        config: "/etc/containerd/config.toml".into(),
        before: Some("0123456789abcdef".repeat(4)),
        changed_from: Some("0123456789abcdef".repeat(4)),
        after: "fedcba9876543210".repeat(4),
        is_edited: false,
        changes: vec![
            Change { path: images, before: None, is_parent: true },
            Change { path: switch, before: Some("use_local_image_pull = false\n".to_owned()), is_parent: false },
        ],
    };
    assert_eq!(serde_json::from_str::<InstallRecord>(golden).unwrap(), record);
    assert_eq!(serde_json::to_string_pretty(&record).unwrap() + "\n", golden);
}
