use proptest::collection::btree_map;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn wanted() -> Wanted {
    Wanted { handler: "peer-pods".to_owned(), snapshotter_socket: "/run/peerpods/snapshotter.sock".into(), shim_config: None }
}

fn added(text: &str) -> (String, Vec<Change>) {
    add(text, &wanted(), FileVersion::V3, &[], false).unwrap()
}

fn table(text: &str) -> toml_edit::Item {
    Item::Table(text.parse::<DocumentMut>().unwrap().as_table().clone())
}

/// As an operator may have it: comments, quotes of both kinds, inline tables, a runtime of his own.
const OPERATORS: &str = r#"# Ours, of 2024.
version = 2
root = '/data/containerd' # a disk of its own

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.example/pause:3.10"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      options = { SystemdCgroup = true } # as the kubelet

# The end.
"#;

#[test]
fn every_line_that_was_there_stays() {
    let (text, changes) = added(OPERATORS);
    let mut rest = text.lines();
    for line in OPERATORS.lines() {
        assert!(rest.any(|other| other == line), "{line:?} is gone, or out of order, in\n{text}");
    }
    assert_eq!(changes.iter().filter(|change| !change.is_parent).count(), 4);
    assert!(changes.iter().all(|change| change.before.is_none()));
    assert_eq!(remove(&text, &changes).unwrap(), OPERATORS);
}

#[test]
fn runtime_is_where_its_version_has_it() {
    for (version, cri) in [(2, CRI_OF_VERSION_2), (3, CRI_OF_VERSION_3)] {
        let (text, _) = added(&format!("version = {version}\n"));
        assert!(text.contains(&format!("[plugins.\"{cri}\".containerd.runtimes.peer-pods]\n")), "{text}");
        assert!(text.contains(&format!("[plugins.\"{IMAGES}\".runtime_platforms.peer-pods]\n")), "{text}");
    }
}

#[test]
fn new_file_has_the_version_asked_for() {
    for (version, line) in [(FileVersion::V2, "version = 2\n"), (FileVersion::V3, "version = 3\n")] {
        let (text, changes) = add("", &wanted(), version, &[], false).unwrap();
        assert!(text.starts_with(line), "{text}");
        assert_eq!(remove(&text, &changes).unwrap(), "");
    }
}

#[test]
fn switch_that_was_off_is_off_again_afterwards() {
    let text = format!("version = 3\n[plugins.\"{IMAGES}\"]\nuse_local_image_pull = false # slow\n");
    let (new, changes) = added(&text);
    assert!(new.contains("use_local_image_pull = true"), "{new}");
    let restored = remove(&new, &changes).unwrap();
    assert!(is_same(&table(&restored), &table(&text)), "{restored}");
}

#[test]
fn files_that_cannot_be_changed_are_refused_with_what_to_do() {
    let refusal = |text: &str| add(text, &wanted(), FileVersion::V3, &[], false).unwrap_err().to_string();
    assert!(refusal("root = '/x'\n").contains("no `version`"));
    assert!(refusal("version = 1\n").contains("version 1"));
    assert!(refusal("version = 4\n").contains("version 4"));
    assert!(refusal("version = \n").contains("TOML"));
    assert!(refusal("version = 3\nproxy_plugins = 7\n").contains("proxy_plugins is not a table"));
    let others = "version = 3\n[proxy_plugins.peerpods]\ntype = \"snapshot\"\naddress = \"/run/other.sock\"\n";
    assert!(refusal(others).contains("proxy_plugins.peerpods is there"));
    let (replaced, changes) = add(others, &wanted(), FileVersion::V3, &[], true).unwrap();
    assert!(!replaced.contains("other.sock"));
    assert!(is_same(&table(&remove(&replaced, &changes).unwrap()), &table(others)));
}

#[test]
fn our_own_entries_follow_what_is_wanted_now() {
    let (text, changes) = added("version = 3\n");
    let moved = Wanted { snapshotter_socket: "/run/new.sock".into(), shim_config: Some("/etc/shim.toml".into()), ..wanted() };
    assert!(
        matches!(add(&text, &moved, FileVersion::V3, &[], false), Err(EditError::Taken { .. })),
        "without the record they are not ours"
    );
    let (text, changes) = add(&text, &moved, FileVersion::V3, &changes, false).unwrap();
    assert!(text.contains("/run/new.sock") && text.contains("ConfigPath = \"/etc/shim.toml\""), "{text}");
    assert_eq!(remove(&text, &changes).unwrap(), "version = 3\n");
}

#[test]
fn entries_written_another_way_are_the_same() {
    let text = "version = 3\nproxy_plugins = { peerpods = { address = '/run/peerpods/snapshotter.sock', type = 'snapshot' } }\n";
    let (_, changes) = added(text);
    assert!(!changes.iter().any(|change| change.path[0] == "proxy_plugins"), "{changes:?}");
}

prop_compose! {
    fn any_table()(
        pairs in btree_map(select(vec!["snapshotter", "use_local_image_pull", "x", "a.b"]), select(vec!["true", "1", "\"s\"", "[1, 2]"]), 0..4),
        comment in select(vec!["", "# a comment\n"]),
        header in select(vec![
            "a", "proxy_plugins", "proxy_plugins.other", "plugins", "plugins.\"io.containerd.grpc.v1.cri\".containerd",
            "plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc", "plugins.\"io.containerd.cri.v1.images\"",
            "plugins.\"io.containerd.cri.v1.images\".runtime_platforms",
        ]),
    ) -> (String, String) {
        let lines: String = pairs.iter().map(|(key, value)| format!("{key:?} = {value}\n")).collect();
        (header.to_owned(), format!("{comment}[{header}]\n{lines}\n"))
    }
}

proptest! {
    #[test]
    fn what_was_there_is_there_again(tables in proptest::collection::vec(any_table(), 0..6), version in 2..=3) {
        let tables: std::collections::BTreeMap<String, String> = tables.into_iter().collect();
        let text = format!("version = {version}\n{}", tables.values().map(String::as_str).collect::<String>());
        // Two of the texts may be no TOML together, such as a value where another one has a table.
        prop_assume!(text.parse::<DocumentMut>().is_ok());
        let Ok((once, changes)) = add(&text, &wanted(), FileVersion::V3, &[], false) else { return Ok(()) };
        prop_assert!(once.parse::<DocumentMut>().is_ok(), "{once}");
        let (twice, again) = add(&once, &wanted(), FileVersion::V3, &changes, false).unwrap();
        prop_assert_eq!(&twice, &once);
        prop_assert_eq!(&again, &changes);
        let restored = remove(&once, &changes).unwrap();
        prop_assert!(is_same(&table(&restored), &table(&text)), "{}\nbecame\n{}\nand then\n{}", text, once, restored);
    }
}
