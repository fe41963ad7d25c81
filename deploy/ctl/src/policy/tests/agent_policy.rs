//! The agent policy, asked as guests ask it.

use serde_json::{Value, json};

use super::requests::{asked, create, running, sandbox, with};
use super::*;

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
        ("variable of the manifest as a service's", variable("DB_SERVICE_HOST=10.0.0.1")),
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
fn volumes_do_not_take_each_others_place() {
    let rego = agent_rego();
    let share = "/run/kata-containers/shared/containers";
    let request = create();
    let allows = |index: usize, kind: &str, source: &str, options: &[&str]| {
        let mount = &request["OCI"]["Mounts"][index];
        let mount = json!({"destination": mount["destination"], "source": source, "type_": kind, "options": options});
        asked(&rego, "CreateContainerRequest", &changed(&request, &format!("/OCI/Mounts/{index}"), &mount))
    };
    let copy = |name: &str| format!("{share}/{CONTAINER}-00000000000000ff-{name}");
    let local = |name: &str| format!("{share}/passthrough/{SANDBOX}/rootfs/local/{name}");
    let (config, cache, scratch, data, rules) = (3, 4, 5, 6, 7);
    assert_eq!(request["OCI"]["Mounts"][rules]["destination"], "/etc/rules");
    assert!(allows(config, "bind", &copy("shop.d"), &["rbind", "ro"]) && allows(config, "bind", &copy("shop.d"), &["rbind", "rw"]));
    assert!(
        allows(cache, "local", &local("cache"), &["rbind"])
            && allows(cache, "local", &local("cache").replace("/passthrough", ""), &["rbind"])
    );
    for (what, is_allowed) in [
        ("another copy for the ConfigMap", allows(config, "bind", &copy("rules"), &["rbind"])),
        ("another container's copy", allows(config, "bind", &copy("shop.d").replace(CONTAINER, SANDBOX), &["rbind"])),
        ("an emptyDir for the ConfigMap", allows(config, "local", &local("cache"), &["rbind"])),
        ("an emptyDir as a copy", allows(config, "bind", &local("cache"), &["rbind"])),
        ("a copy for the emptyDir", allows(cache, "local", &copy("cache"), &["rbind"])),
        ("a copy bound for the emptyDir", allows(cache, "bind", &copy("shop"), &["rbind"])),
        ("another emptyDir", allows(cache, "local", &local("other"), &["rbind"])),
        ("an emptyDir of another pod", allows(cache, "local", &local("cache").replace(SANDBOX, CONTAINER), &["rbind"])),
        ("memory for disk", allows(cache, "bind", "/run/kata-containers/sandbox/ephemeral/cache", &["rbind"])),
        ("the whole volume for a sub path", allows(scratch, "bind", "/run/kata-containers/sandbox/ephemeral/scratch", &["rbind"])),
        ("another sub path", allows(scratch, "bind", "/run/kata-containers/sandbox/ephemeral/scratch/web/x", &["rbind"])),
        ("a copy for the image's volume", allows(data, "bind", &copy("shop.d"), &["rbind"])),
        ("a writable mount of what is read only", allows(rules, "bind", &copy("rules"), &["rbind", "rw", "ro"])),
        ("no word of read only", allows(rules, "bind", &copy("rules"), &["rbind"])),
        ("an option that says more", allows(config, "bind", &copy("shop.d"), &["rbind", "rshared"])),
    ] {
        assert!(!is_allowed, "{what}");
    }
    let mut missing = request.clone();
    missing["OCI"]["Mounts"].as_array_mut().unwrap().remove(cache);
    assert!(!asked(&rego, "CreateContainerRequest", &missing));
}

#[test]
fn sub_paths_of_any_name_stay_in_their_volume() {
    let additions = Additions { any_value: ["SELF".to_owned()].into(), ..additions() };
    let rego = agent::render(&containers::policy_data(&Workload::parse(POD).unwrap(), &additions).unwrap().data);
    let of = |part: &str| {
        let path = format!("/run/kata-containers/sandbox/ephemeral/scratch/{part}");
        let request = changed(&create(), "/OCI/Mounts/5/source", &json!(path));
        asked(&rego, "CreateContainerRequest", &changed(&request, "/storages/3/mount_point", &json!(path)))
    };
    assert!(of("web") && of("any/where"));
    assert!(!of("..") && !of("../cache") && !of("a/../../../../etc"));
}

#[test]
fn storages_are_those_of_the_containers_volumes() {
    let rego = agent_rego();
    let request = create();
    let allows = |pointer: &str, value: Value| asked(&rego, "CreateContainerRequest", &changed(&request, pointer, &value));
    let copy = format!("/run/kata-containers/shared/containers/{CONTAINER}-0000000000000007-shop.d");
    for (pointer, value) in [
        ("/storages/0/driver_options", json!([format!("peerpods.pid-namespace-of={SANDBOX}")])),
        ("/storages/0/mount_point", json!(format!("/run/kata-containers/{SANDBOX}/rootfs"))),
        ("/storages/1/mount_point", json!(copy)),
        ("/storages/1/driver_options", json!(["peerpods.copy-up=/srv/data"])),
        ("/storages/1/fstype", json!("overlay")),
        ("/storages/2/fstype", json!("9p")),
        ("/storages/2/source", json!("/run/peerpods")),
        ("/storages/2/options", json!(["bind"])),
        ("/storages/2/mount_point", json!("/run/kata-containers/sandbox/ephemeral/other")),
        ("/storages/3/mount_point", json!("/run/kata-containers/sandbox/ephemeral/scratch/../x")),
        ("/storages/4/driver_options", json!(["peerpods.copy-up=/bin"])),
    ] {
        assert!(!allows(pointer, value), "{pointer}");
    }
    assert!(allows("/storages/1/options", json!(["mode=0777", "fsgid=5"])));
}

#[test]
fn kernel_is_as_the_pod_asks_for_it() {
    let rego = agent_rego();
    let request = create();
    let allows = |pointer: &str, value: Value| asked(&rego, "CreateContainerRequest", &changed(&request, pointer, &value));
    let masked = |pointer: &str, more: &str| {
        let mut paths = request.pointer(pointer).unwrap().clone();
        paths.as_array_mut().unwrap().push(more.into());
        paths
    };
    let device = |path: &str, major: u32, minor: u32| json!([{"Path": path, "Type": "c", "Major": major, "Minor": minor, "FileMode": 0, "UID": 0, "GID": 0}]);
    let filter = |action: &str, errno: Value| json!([{"Names": ["setuid"], "Action": action, "ErrnoRet": errno, "Args": []}]);
    for (pointer, value) in [
        ("/OCI/Mounts/0/options", json!(["rbind"])),
        ("/OCI/Mounts/0/options", json!(["bind"])),
        ("/OCI/Mounts/0/type_", json!("sysfs")),
        ("/OCI/Mounts/8/options", json!(["nosuid"])),
        ("/OCI/Mounts/8/options", json!(["ro", "rw"])),
        ("/OCI/Linux/Sysctl", json!({"kernel.shm_rmid_forced": "1"})),
        ("/OCI/Linux/Sysctl", json!({"net.core.somaxconn": "1"})),
        ("/OCI/Linux/Devices", device("/dev/kmsg", 1, 11)),
        ("/OCI/Linux/Devices", device("/dev/null", 1, 1)),
        ("/OCI/Linux/Resources/Devices", json!([{"Allow": true, "Access": "rwm", "Type": "a"}])),
        ("/OCI/Linux/MaskedPaths", json!([])),
        ("/OCI/Linux/ReadonlyPaths", json!([])),
        ("/OCI/Linux/MaskedPaths", masked("/OCI/Linux/MaskedPaths", "/etc/shop.d/rules")),
        ("/OCI/Linux/ReadonlyPaths", masked("/OCI/Linux/ReadonlyPaths", "/proc/../etc")),
        ("/OCI/Linux/Seccomp/DefaultAction", json!("SCMP_ACT_NOTIFY")),
        ("/OCI/Linux/Seccomp/Syscalls", filter("SCMP_ACT_ERRNO", json!({"Errnoret": 0}))),
        ("/OCI/Linux/Seccomp/Syscalls", filter("SCMP_ACT_TRACE", Value::Null)),
        ("/OCI/Linux/Namespaces/2/Path", json!("/proc/1/ns/mnt")),
        ("/OCI/Linux/Namespaces", json!([{"Type": "ipc", "Path": ""}])),
        ("/OCI/Linux/UIDMappings", json!([{"HostID": 0, "ContainerID": 0, "Size": 1}])),
        ("/OCI/Linux/RootfsPropagation", json!("rshared")),
        ("/OCI/Annotations/io.kubernetes.container.terminationMessagePath", json!("/etc/rules")),
    ] {
        assert!(!allows(pointer, value.clone()), "{pointer} {value}");
    }
    for (pointer, value) in [
        ("/OCI/Linux/Seccomp", Value::Null),
        ("/OCI/Linux/Seccomp/Syscalls", filter("SCMP_ACT_ERRNO", Value::Null)),
        ("/OCI/Linux/Resources", Value::Null),
        ("/OCI/Linux/Sysctl", json!({"net.core.somaxconn": "1024"})),
        ("/OCI/Linux/Devices", device("/dev/null", 1, 3)),
        ("/OCI/Linux/MaskedPaths", masked("/OCI/Linux/MaskedPaths", "/proc/interrupts")),
        ("/OCI/Mounts/8", json!({"destination": "/sys/fs/cgroup", "source": "cgroup", "type_": "cgroup2", "options": ["relatime", "ro"]})),
    ] {
        assert!(allows(pointer, value.clone()), "{pointer} {value}");
    }
}

#[test]
fn privileged_containers_get_what_they_ask_for() {
    let privileged =
        POD.replace("      runAsUser: 1000\n", "      runAsUser: 1000\n      privileged: true\n      seccompProfile: {type: Unconfined}\n");
    let rego = rego_of(&privileged.replace("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"));
    let mut request = create();
    assert!(!asked(&rego, "CreateContainerRequest", &request), "a filter that the manifest does not want");
    request["OCI"]["Linux"]["Seccomp"] = Value::Null;
    request["OCI"]["Linux"]["MaskedPaths"] = json!([]);
    request["OCI"]["Linux"]["ReadonlyPaths"] = json!([]);
    request["OCI"]["Linux"]["Devices"] = json!([{"Path": "/dev/fuse", "Type": "c", "Major": 10, "Minor": 229}]);
    request["OCI"]["Mounts"][8]["options"] = json!(["nosuid"]);
    request["OCI"]["Process"]["NoNewPrivileges"] = json!(false);
    request["OCI"]["Process"]["Capabilities"]["Bounding"] = json!(["SYS_ADMIN"]);
    assert!(asked(&rego, "CreateContainerRequest", &request));
    assert!(!asked(&agent_rego(), "CreateContainerRequest", &request));
}

#[test]
fn all_containers_are_of_one_pod() {
    let policy = running();
    let mut other = create();
    other["OCI"]["Annotations"]["io.kubernetes.cri.sandbox-id"] = CONTAINER.into();
    other["OCI"]["Mounts"][4]["source"] = format!("/run/kata-containers/shared/containers/{CONTAINER}/rootfs/local/cache").into();
    other["storages"][1]["mount_point"] = other["OCI"]["Mounts"][4]["source"].clone();
    assert!(asked(&agent_rego(), "CreateContainerRequest", &other));
    assert!(policy.check("CreateContainerRequest", &other).is_err());
    policy.check("CreateContainerRequest", &create()).unwrap();
    for id in [".*", "", "a/b"] {
        assert!(policy.check("CreateContainerRequest", &changed(&create(), "/container_id", &json!(id))).is_err(), "{id:?}");
    }
}

#[test]
fn only_a_containers_own_commands_run_beside_it() {
    let policy = running();
    let env = ["PATH=/usr/bin:/bin", "LANG=C.UTF-8", "DB_SERVICE_HOST=db.example.org", "KUBERNETES_PORT_443_TCP_PORT=443"];
    let request = |args: &[&str], env: &[&str]| {
        json!({"container_id": CONTAINER, "exec_id": "e", "string_user": null, "process": {
            "Args": args, "Env": env, "Cwd": "/srv", "Terminal": false, "User": {"UID": 1000}, "Capabilities": null, "NoNewPrivileges": true,
        }})
    };
    let allows = |request: &Value| policy.check("ExecProcessRequest", request).is_ok();
    let exec = |args: &[&str]| allows(&request(args, &env));
    assert!(exec(&["/bin/probe", "--live"]) && exec(&["ls", "/srv"]));
    assert!(!exec(&["ls"]) && !exec(&["/bin/sh"]) && !exec(&[]));
    assert!(!exec(&["/bin/ready"]), "another container's probe");
    let good = request(&["ls", "/srv"], &env);
    for (pointer, value) in [
        ("/process/Env/0", json!("LD_PRELOAD=/x")),
        ("/process/Env/2", json!("DB_SERVICE_HOST=10.0.0.1")),
        ("/process/Env/3", json!("LANG=C.UTF-8")),
        ("/process/Env/3", json!("TERM=xterm")),
        ("/process/User/UID", json!(0)),
        ("/process/Cwd", json!("/")),
        ("/process/NoNewPrivileges", json!(false)),
        ("/string_user", json!({"uid": "root"})),
        ("/container_id", json!(SANDBOX)),
        ("/container_id", json!("unknown")),
    ] {
        assert!(!allows(&changed(&good, pointer, &value)), "{pointer} {value}");
    }
    let terminal = changed(&changed(&good, "/process/Terminal", &json!(true)), "/process/Env/3", &json!("TERM=xterm"));
    assert!(allows(&terminal));
    assert!(!asked(&agent_rego(), "ExecProcessRequest", &good), "its container was not created");
    policy.check("RemoveContainerRequest", &json!({"container_id": CONTAINER})).unwrap();
    assert!(!allows(&good));
}

#[test]
fn containers_are_ended_as_by_the_kubelet() {
    let policy = running();
    let signal = |container: &str, exec: &str, signal: u32| {
        policy.check("SignalProcessRequest", &json!({"container_id": container, "exec_id": exec, "signal": signal})).is_ok()
    };
    for number in [9, 15] {
        assert!(signal(CONTAINER, CONTAINER, number) && signal(CONTAINER, "e", number) && signal(SANDBOX, "", number), "{number}");
    }
    // QUIT is what this image is stopped by.
    assert!(signal(CONTAINER, "", 3) && signal(CONTAINER, CONTAINER, 3));
    assert!(!signal(CONTAINER, "e", 3) && !signal(SANDBOX, "", 3) && !signal("unknown", "", 3));
    for number in [1, 2, 10, 12, 18, 19] {
        assert!(!signal(CONTAINER, "", number), "{number}");
    }
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
    // An emptyDir's content is the containers' alone.
    for name in ["web", "cache", "shop", "tmp/x", "data", "resolv_conf", "hosts/x", "shopxd/a", "shop.d/../../x", "shop.dd"] {
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
    for (port, is_allowed) in [(8080, true), (8081, false), (0, false)] {
        assert_eq!(asked(&rego, "PortForwardRequest", &json!({"port": port})), is_allowed, "{port}");
    }
    let shm = json!({"driver": "ephemeral", "source": "shm", "fstype": "tmpfs", "options": ["mode=1777"], "mount_point": "/run/kata-containers/sandbox/shm"});
    let request = json!({"kernel_modules": [], "guest_hook_path": "", "storages": [shm]});
    assert!(asked(&rego, "CreateSandboxRequest", &request));
    for (pointer, value) in [
        ("/storages/0/mount_point", json!("/usr")),
        ("/storages/0/source", json!("/etc")),
        ("/storages/0/fstype", json!("9p")),
        ("/storages/0/options", json!(["bind"])),
        ("/kernel_modules", json!([{"name": "x"}])),
        ("/guest_hook_path", json!("/hook")),
    ] {
        assert!(!asked(&rego, "CreateSandboxRequest", &changed(&request, pointer, &value)), "{pointer}");
    }
}
