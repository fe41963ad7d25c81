//! Policies as agents and brokers evaluate them: in Rego, against requests and claims.

use std::path::PathBuf;

use regorus::{Engine, Value as RegoValue};
use serde_json::{Value, json};

use super::*;

const POD: &str = include_str!("tests/pod.yaml");
const WEB: &str = include_str!("tests/web.json");
const DIGEST: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";
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
    let additions = Additions {
        image_configs: [("web".to_owned(), ImageConfig::parse(WEB).unwrap())].into(),
        exec: vec![vec!["ls".to_owned(), "/srv".to_owned()]],
        ..Additions::default()
    };
    agent::render(&containers::policy_data(&Workload::parse(POD).unwrap(), &additions).unwrap().data)
}

fn asked(rego: &str, rule: &str, input: &Value) -> bool {
    let mut engine = Engine::new();
    engine.set_gather_prints(true);
    engine.add_policy("policy.rego".to_owned(), rego.to_owned()).unwrap();
    engine.set_input(RegoValue::from(input.clone()));
    engine.eval_rule(format!("data.agent_policy.{rule}")).unwrap() == RegoValue::Bool(true)
}

/// The manifest's second container as our shim asks for it, in the form that agents show to policies.
fn create() -> Value {
    let copy = |name: &str| format!("/run/kata-containers/shared/containers/{CONTAINER}-0000000000000007-{name}");
    json!({
        "container_id": CONTAINER, "exec_id": CONTAINER, "string_user": null, "devices": [], "shared_mounts": [], "sandbox_pidns": false,
        "storages": [
            {"driver": "image_guest_pull", "driver_options": ["image_guest_pull={\"metadata\":{}}"], "fstype": "overlay",
                "source": format!("registry.example.org/shop/web@{DIGEST}"), "options": [], "fs_group": null,
                "mount_point": format!("/run/kata-containers/{CONTAINER}/rootfs")},
            {"driver": "local", "source": "local", "fstype": "local", "options": ["mode=0777"], "fs_group": null, "driver_options": [],
                "mount_point": format!("/run/kata-containers/shared/containers/passthrough/{CONTAINER}/rootfs/local/cache")},
        ],
        "OCI": {
            "Version": "1.2.1", "Hooks": null, "Hostname": "shop",
            "Root": {"Path": format!("/run/kata-containers/{CONTAINER}/rootfs"), "Readonly": true},
            "Process": {
                "Terminal": false, "Cwd": "/srv", "NoNewPrivileges": true, "Args": ["/bin/web", "--listen", ":8080"],
                "User": {"UID": 1000, "GID": 1000, "AdditionalGids": [1000], "Username": ""},
                "Env": [
                    "PATH=/usr/bin:/bin", "LANG=C.UTF-8", "HOSTNAME=shop", "POD_NAME=shop", "PASSWORD=sealed.aa.bb.cc",
                    "GREETING=it's \"open\": \\o/ $(x)", "KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT_HTTPS=443",
                    "KUBERNETES_PORT=tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
                ],
                "Capabilities": {"Bounding": ["CAP_NET_BIND_SERVICE"], "Effective": ["CAP_NET_BIND_SERVICE"], "Permitted": [], "Inheritable": [], "Ambient": []},
            },
            "Annotations": {
                "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "web",
                "io.kubernetes.cri.image-name": format!("registry.example.org/shop/web:1.2@{DIGEST}"),
                "io.kubernetes.cri.sandbox-name": "shop", "io.kubernetes.cri.sandbox-namespace": "retail",
                "io.kubernetes.cri.sandbox-id": CONTAINER, "io.katacontainers.pkg.oci.container_type": "pod_container",
            },
            "Mounts": [
                {"destination": "/proc", "source": "proc", "type_": "proc", "options": []},
                {"destination": "/dev/shm", "source": "/run/kata-containers/sandbox/shm", "type_": "bind", "options": ["rbind"]},
                {"destination": "/etc/hosts", "source": copy("hosts"), "type_": "bind", "options": ["rbind"]},
                {"destination": "/etc/shop.d", "source": copy("shop.d"), "type_": "bind", "options": ["rbind", "ro"]},
                {"destination": "/var/cache/shop", "type_": "local", "options": ["rbind"],
                    "source": format!("/run/kata-containers/shared/containers/passthrough/{CONTAINER}/rootfs/local/cache")},
            ],
            "Linux": {"Sysctl": {}},
        },
    })
}

fn sandbox() -> Value {
    let mut request = create();
    request["storages"] =
        json!([{"driver": "image_guest_pull", "source": "pause", "mount_point": format!("/run/kata-containers/{CONTAINER}/rootfs")}]);
    let oci = &mut request["OCI"];
    oci["Annotations"] = json!({
        "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-name": "shop", "io.kubernetes.cri.sandbox-namespace": "retail",
        "io.kubernetes.cri.podsandbox.image-name": "registry.k8s.io/pause:3.10", "nerdctl/network-namespace": "/var/run/netns/cni-1",
    });
    oci["Process"] = json!({
        "Terminal": false, "Cwd": "/", "NoNewPrivileges": true, "Args": ["/pause"], "User": {"UID": 65535, "GID": 65535}, "Capabilities": null,
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    });
    oci["Mounts"] = json!([]);
    request
}

fn changed(request: &Value, pointer: &str, value: &Value) -> Value {
    let mut request = request.clone();
    *request.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value.clone();
    request
}

fn with(request: &Value, list: &str, value: &Value) -> Value {
    let mut request = request.clone();
    request.pointer_mut(list).unwrap().as_array_mut().unwrap().push(value.clone());
    request
}

#[test]
fn agent_policy_is_as_reviewed() {
    golden("policy.rego", &agent_rego());
}

#[test]
fn containers_of_the_manifest_are_created() {
    let rego = agent_rego();
    assert!(asked(&rego, "CreateContainerRequest", &create()));
    assert!(asked(&rego, "CreateContainerRequest", &sandbox()));
    let other_tag = format!("registry.example.org/shop/web@{DIGEST}");
    assert!(asked(
        &rego,
        "CreateContainerRequest",
        &changed(&create(), "/OCI/Annotations/io.kubernetes.cri.image-name", &json!(other_tag))
    ));
}

#[test]
fn changed_containers_are_not_created() {
    let rego = agent_rego();
    let request = create();
    let variable = |text: &str| with(&request, "/OCI/Process/Env", &json!(text));
    let mount = |destination: &str, source: &str| {
        with(&request, "/OCI/Mounts", &json!({"destination": destination, "source": source, "type_": "bind", "options": []}))
    };
    let copy = format!("/run/kata-containers/shared/containers/{CONTAINER}-0000000000000007-web");
    let unpinned = "registry.example.org/shop/web:1.2";
    let other = format!("registry.example.org/shop/web@sha256:{}", "3".repeat(64));
    let elsewhere = format!("registry.example.net/shop/web@{DIGEST}");
    let mut without_variable = request.clone();
    without_variable["OCI"]["Process"]["Env"]
        .as_array_mut()
        .unwrap()
        .retain(|variable| !variable.as_str().unwrap().starts_with("GREETING"));
    let second_image = with(&request, "/storages", &request["storages"][0]);
    for (what, request) in [
        ("argument", changed(&request, "/OCI/Process/Args/2", &json!(":80"))),
        ("more arguments", with(&request, "/OCI/Process/Args", &json!("--debug"))),
        ("working directory", changed(&request, "/OCI/Process/Cwd", &json!("/"))),
        ("terminal", changed(&request, "/OCI/Process/Terminal", &json!(true))),
        ("user", changed(&request, "/OCI/Process/User/UID", &json!(0))),
        ("privileges", changed(&request, "/OCI/Process/NoNewPrivileges", &json!(false))),
        ("capability", with(&request, "/OCI/Process/Capabilities/Bounding", &json!("CAP_SYS_ADMIN"))),
        ("variable", changed(&request, "/OCI/Process/Env/1", &json!("LANG=C"))),
        ("missing variable", without_variable),
        ("more variables", variable("LD_PRELOAD=/etc/shop.d/evil.so")),
        ("second value", variable("LANG=C")),
        ("secret that is not sealed", changed(&request, "/OCI/Process/Env/4", &json!("PASSWORD=secret"))),
        ("service variable with another form", variable("X_SERVICE_HOST=10.0.0.1; rm")),
        ("service variable in two lines", variable("X_SERVICE_HOST=10.0.0.1\nLD_PRELOAD=x")),
        ("image without digest", changed(&request, "/storages/0/source", &json!(unpinned))),
        ("other digest", changed(&request, "/storages/0/source", &json!(other))),
        ("other repository", changed(&request, "/storages/0/source", &json!(elsewhere))),
        ("image's name", changed(&request, "/OCI/Annotations/io.kubernetes.cri.image-name", &json!(unpinned))),
        ("second image", second_image),
        ("image elsewhere", changed(&request, "/storages/0/mount_point", &json!("/usr"))),
        ("volume elsewhere", changed(&request, "/storages/1/mount_point", &json!("/run/kata-containers/sandbox/../../../usr"))),
        ("kind of volume", changed(&request, "/storages/1/driver", &json!("bind"))),
        ("no image", changed(&request, "/storages", &json!([]))),
        ("writable root", changed(&request, "/OCI/Root/Readonly", &json!(false))),
        ("root elsewhere", changed(&request, "/OCI/Root/Path", &json!("/"))),
        ("mount over a program", mount("/bin", &copy)),
        ("mount of the guest's files", mount("/etc/hosts", "/run/peerpods")),
        ("mount that climbs", mount("/etc/hosts", "/run/kata-containers/shared/containers/../../../etc/shadow")),
        ("container's name", changed(&request, "/OCI/Annotations/io.kubernetes.cri.container-name", &json!("prepare"))),
        ("pod's name", changed(&request, "/OCI/Annotations/io.kubernetes.cri.sandbox-name", &json!("other"))),
        ("namespace", changed(&request, "/OCI/Annotations/io.kubernetes.cri.sandbox-namespace", &json!("other"))),
        ("hooks", changed(&request, "/OCI/Hooks", &json!({"Prestart": []}))),
        ("user by name", changed(&request, "/string_user", &json!({"uid": "root"}))),
        ("device", with(&request, "/devices", &json!({"type_": "blk"}))),
        ("shared mount", with(&request, "/shared_mounts", &json!({"name": "x"}))),
        ("shared processes", changed(&request, "/sandbox_pidns", &json!(true))),
        ("pause with other arguments", changed(&sandbox(), "/OCI/Process/Args", &json!(["/bin/sh"]))),
        ("pause with another image", changed(&sandbox(), "/storages/0/source", &json!("registry.example.net/a"))),
        ("nothing", json!({})),
    ] {
        assert!(!asked(&rego, "CreateContainerRequest", &request), "{what}");
    }
    let mut unknown = create();
    unknown["OCI"]["Annotations"]["example.org/x"] = json!("");
    assert!(!asked(&rego, "CreateContainerRequest", &unknown));
}

#[test]
fn only_listed_commands_run_beside_the_containers() {
    let rego = agent_rego();
    let exec = |args: &[&str], env: &[&str], uid: u32| {
        asked(
            &rego,
            "ExecProcessRequest",
            &json!({"container_id": CONTAINER, "string_user": null, "process": {
                "Args": args, "Env": env, "User": {"UID": uid}, "Capabilities": null, "NoNewPrivileges": true,
            }}),
        )
    };
    assert!(exec(&["/bin/probe", "--live"], &["LANG=C.UTF-8"], 1000));
    assert!(exec(&["ls", "/srv"], &[], 1000));
    assert!(!exec(&["ls"], &[], 1000) && !exec(&["/bin/sh"], &[], 1000) && !exec(&[], &[], 1000));
    assert!(!exec(&["ls", "/srv"], &["LD_PRELOAD=/x"], 1000));
    assert!(!asked(&rego, "ExecProcessRequest", &json!({})));
}

#[test]
fn only_files_of_the_manifests_volumes_are_copied() {
    let rego = agent_rego();
    let copy = |name: &str, kind: &str, target: Value| {
        let path = format!("/run/kata-containers/shared/containers/{CONTAINER}-0000000000000007-{name}");
        asked(&rego, "CopyFileRequest", &json!({"path": path, "file_type": kind, "symlink_target": target}))
    };
    for name in ["hosts", "hostname", "resolv.conf", "termination-log", "shop.d/a", "serviceaccount/..data/token"] {
        assert!(copy(name, "Regular", Value::Null), "{name}");
    }
    assert!(copy("shop.d", "Directory", Value::Null) && copy("shop.d/..data", "Symlink", json!("..2026")));
    for name in ["web", "resolv_conf", "hosts/x", "shopxd/a", "shop.d/../../x", "shop.dd"] {
        assert!(!copy(name, "Regular", Value::Null), "{name}");
    }
    assert!(!copy("shop.d/a", "Symlink", json!("/etc/shadow")) && !copy("shop.d/a", "Symlink", json!("../../x")));
    assert!(!asked(&rego, "CopyFileRequest", &json!({"path": "/etc/passwd", "file_type": "Regular"})));
}

#[test]
fn everything_else_is_as_the_pod_needs_it() {
    let rego = agent_rego();
    let bare = json!({});
    for allowed in ["StartContainerRequest", "WaitProcessRequest", "ReadStreamRequest", "RemoveContainerRequest", "UpdateInterfaceRequest"]
    {
        assert!(asked(&rego, allowed, &bare), "{allowed}");
    }
    for denied in ["SetPolicyRequest", "WriteStreamRequest", "CreateSandboxRequest"] {
        assert!(!asked(&rego, denied, &bare), "{denied}");
    }
    let storage = |mount_point: &str| json!({"kernel_modules": [], "guest_hook_path": "", "storages": [{"driver": "ephemeral", "mount_point": mount_point}]});
    assert!(asked(&rego, "CreateSandboxRequest", &storage("/run/kata-containers/sandbox/shm")));
    assert!(!asked(&rego, "CreateSandboxRequest", &storage("/usr")));
}

// ------------------------------------------------------------------------------------------------------------------- key broker

fn pins(tee: Tee, measurements: &str) -> Pins {
    let files = [("policy.rego".to_owned(), "package agent_policy\n".to_owned())];
    Pins {
        measurements: broker::measurements(measurements).unwrap(),
        initdata: initdata::Document::new(initdata::HashAlgorithm::Sha256, files.into()).unwrap(),
        resources: [broker::resource("kbs:///default/key/1").unwrap()].into(),
        tee,
        any_firmware: false,
    }
}

fn hex_of(byte: &str, bytes: usize) -> String {
    byte.repeat(bytes)
}

/// As Trustee evaluates it, with its function.
fn evaluated(rego: &str, query: &str, input: &Value, data: &Value, references: &Value) -> Value {
    let mut engine = Engine::new();
    let references = references.clone();
    let lookup = move |names: Vec<RegoValue>| Ok(RegoValue::from(references[names[0].as_string().unwrap().as_ref()].clone()));
    engine.add_extension("query_reference_value".to_owned(), 1, Box::new(lookup)).unwrap();
    engine.add_policy("policy.rego".to_owned(), rego.to_owned()).unwrap();
    engine.set_input(RegoValue::from(input.clone()));
    engine.add_data(RegoValue::from(data.clone())).unwrap();
    serde_json::to_value(engine.eval_rule(query.to_owned()).unwrap()).unwrap()
}

fn appraised(pins: &Pins, claims: &Value) -> Value {
    evaluated(&pins.attestation_policy(), "data.policy.trust_claims", claims, &json!({}), &pins.reference_values())
}

fn released(pins: &Pins, status: &str, claims: &Value, path: &Value, plugin: &str) -> bool {
    let token = json!({"submods": {"cpu0": {"ear.status": status, "ear.veraison.annotated-evidence": claims}}});
    let data = json!({"plugin": plugin, "resource-path": path, "query": {}});
    evaluated(&pins.resource_policy(), "data.policy.allow", &token, &data, &json!({})) == json!(true)
}

/// Measurements and the claims of evidence that has them, for each kind.
fn cases() -> Vec<(Pins, Value)> {
    let (a, b, long) = (hex_of("0a", 32), hex_of("0b", 32), hex_of("0c", 48));
    let header = json!({"tee_type": "81000000", "vendor_id": "939a7233f79c4ca9940a0db3957f0607"});
    let registers = json!({"pcr04": [a], "pcr11": [hex_of("0f", 32), b.clone()]});
    let with = |more: Value| {
        let mut all = registers.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all.to_string()
    };
    let base64 = "DAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM";
    let tpm = json!({"pcr04": a, "pcr11": b, "pcr09": "00"});
    let case = |tee: Tee, measurements: &str, claims: Value| {
        let pins = pins(tee, measurements);
        let register = pins.initdata.registers();
        let init_data = match tee {
            Tee::Sample | Tee::Snp => hex::encode(register.host_data),
            Tee::Tdx => hex::encode(register.mrconfigid),
            _ => hex::encode(register.pcr08.unwrap()),
        };
        (pins, json!({tee.name(): claims, "init_data": init_data}))
    };
    vec![
        case(Tee::Sample, r#"{"svn":["1"]}"#, json!({"svn": "1"})),
        case(Tee::Tpm, &registers.to_string(), tpm.clone()),
        case(Tee::Tpm, &registers.to_string(), json!({"tpm": tpm})),
        case(Tee::Tpm, &with(json!({"ak_public": "TUlJ"})), json!({"pcr04": a, "pcr11": b, "ak_public": "TUlJ"})),
        case(
            Tee::Snp,
            &json!({"measurement": [long]}).to_string(),
            json!({"measurement": base64, "policy_debug_allowed": false, "policy_migrate_ma": false}),
        ),
        case(
            Tee::AzSnpVtpm,
            &with(json!({"measurement": [long]})),
            json!({"measurement": base64, "policy_debug_allowed": "false", "policy_migrate_ma": "false", "tpm": tpm}),
        ),
        case(
            Tee::Tdx,
            &json!({"mr_td": [long], "rtmr_1": [long]}).to_string(),
            json!({"quote": {"header": header, "body": {"mr_td": long, "rtmr_1": long}}, "td_attributes": {"debug": false}}),
        ),
        case(
            Tee::AzTdxVtpm,
            &with(json!({"mr_td": [long]})),
            json!({"quote": {"header": header, "body": {"mr_td": long}}, "td_attributes": {"debug": false}, "tpm": tpm}),
        ),
    ]
}

#[test]
fn broker_policies_are_as_reviewed() {
    for (pins, _) in cases().into_iter().filter(|(pins, _)| matches!(pins.tee, Tee::AzSnpVtpm | Tee::Tdx)) {
        pins.check().unwrap();
        let name = pins.tee.name();
        golden(&format!("{name}-attestation-policy.rego"), &pins.attestation_policy());
        golden(&format!("{name}-resource-policy.rego"), &pins.resource_policy());
        golden(&format!("{name}-reference-values.json"), &format!("{:#}\n", pins.reference_values()));
    }
}

#[test]
fn measured_images_are_affirmed_and_get_their_resources() {
    for (pins, claims) in cases() {
        let tee = pins.tee.name();
        pins.check().unwrap();
        assert_eq!(appraised(&pins, &claims), json!({"hardware": 2, "executables": 3, "configuration": 2}), "{tee}");
        assert!(released(&pins, "affirming", &claims, &json!(["default", "key", "1"]), "resource"), "{tee}");
        assert!(released(&pins, "affirming", &claims, &json!("default/key/1"), "resource"), "{tee}");
    }
}

#[test]
fn other_images_and_initdata_get_nothing() {
    let path = json!(["default", "key", "1"]);
    for (pins, claims) in cases() {
        let tee = pins.tee.name();
        // One changed value after the other.
        let mut text = Vec::new();
        leaves(&claims, String::new(), &mut text);
        for pointer in text.iter().filter(|pointer| !pointer.ends_with("pcr09")) {
            let other = match claims.pointer(pointer).unwrap() {
                Value::Bool(value) => json!(!value),
                Value::String(value) if value == "false" => json!("true"),
                _ => json!("00"),
            };
            let claims = changed(&claims, pointer, &other);
            let trust = appraised(&pins, &claims);
            let is_affirmed = trust.as_object().unwrap().values().all(|value| value.as_u64().unwrap() < 32);
            assert!(!is_affirmed || !released(&pins, "affirming", &claims, &path, "resource"), "{tee} {pointer}");
        }
        assert!(!released(&pins, "warning", &claims, &path, "resource"), "{tee}");
        assert!(!released(&pins, "affirming", &claims, &json!(["default", "key", "2"]), "resource"), "{tee}");
        assert!(!released(&pins, "affirming", &claims, &path, "pkcs11"), "{tee}");
        assert!(!released(&pins, "affirming", &json!({}), &path, "resource"), "{tee}");
        // Without reference values, and with evidence of another kind.
        let nothing = evaluated(&pins.attestation_policy(), "data.policy.trust_claims", &claims, &json!({}), &json!({}));
        assert_eq!(nothing["executables"], 33, "{tee}");
        let other = json!({"cca": {}, "init_data": ""});
        assert_eq!(appraised(&pins, &other), json!({"hardware": 97, "executables": 33, "configuration": 36}), "{tee}");
    }
}

fn leaves(value: &Value, pointer: String, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| leaves(value, format!("{pointer}/{name}"), found)),
        _ => found.push(pointer),
    }
}

#[test]
fn measurements_that_pin_nothing_are_refused() {
    let refused = |tee: Tee, measurements: &str| pins(tee, measurements).check().unwrap_err().to_string();
    let a = hex_of("0a", 32);
    for (tee, measurements, named) in [
        (Tee::Tpm, json!({"ak_public": "x"}), "needs registers such as pcr04"),
        (Tee::Tpm, json!({"pcr24": a}), "has no claim \"pcr24\""),
        (Tee::Tpm, json!({"rtmr_1": a}), "known: pcr00 to pcr23"),
        (Tee::Tpm, json!({"pcr04": "0A"}), "not lower-case hexadecimal"),
        (Tee::AzSnpVtpm, json!({"pcr04": a}), "--any-firmware"),
        (Tee::Tdx, json!({"rtmr_1": a}), "needs mr_td"),
        (Tee::Tdx, json!({"mr_td": a}), "needs registers such as rtmr_1"),
        (Tee::Sample, json!({}), "such as svn"),
    ] {
        let error = refused(tee, &measurements.to_string());
        assert!(error.contains(named), "{error}");
    }
    for odd in ["[]", "{\"a\":[]}", "{\"a\":1}", "{\"a b\":[\"1\"]}", "{\"a\":[1]}", "{"] {
        assert!(broker::measurements(odd).is_err(), "{odd}");
    }
    let mut longer = pins(Tee::Tpm, &json!({"pcr04": a}).to_string());
    longer.initdata = initdata::Document::new(initdata::HashAlgorithm::Sha384, [("a".to_owned(), "b".to_owned())].into()).unwrap();
    assert!(matches!(longer.check(), Err(broker::BrokerError::Algorithm)));
    let mut open = pins(Tee::AzSnpVtpm, &json!({"pcr04": a}).to_string());
    open.any_firmware = true;
    open.check().unwrap();
    assert_eq!(open.warnings().len(), 1);
    open.resources.clear();
    assert!(matches!(open.check(), Err(broker::BrokerError::NoResource)));
    assert!(broker::resource("default/key").is_err());
}

// ------------------------------------------------------------------------------------------------------------------- the command

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
    let rego = run(&["generate", "--pod", &pod, "--image-config", &config, "--allow-exec", "ls /srv"]).unwrap();
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
}
